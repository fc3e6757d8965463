/* The least that a file system of FUSE can do where the kernel answers warm reads by itself: what they cost here is the kernel.
 *
 *   bare NAMES MOUNTPOINT
 *
 * One directory, `store`, with NAMES files, and the mount options, timeouts and flags of secretfs. OPEN is answered with ENOSYS, as in
 * secretfs; a request to read carries no handle then, so it is answered by its inode, which pyfuse3 does not tell. */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZE 64
#define TIMEOUT 3600.0 /* seconds */
enum { STORE = FUSE_ROOT_ID + 1, FIRST };

static unsigned long names;

static struct stat attributes(fuse_ino_t inode)
{
    struct stat status = {.st_ino = inode, .st_mode = inode < FIRST ? S_IFDIR | 0500 : S_IFREG | 0400, .st_nlink = 1};
    status.st_size = inode < FIRST ? 0 : SIZE;
    return status;
}

static void init(void *unused, struct fuse_conn_info *connection)
{
    (void)unused;
    connection->want &= ~(unsigned)(FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC);
}

static void lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    unsigned long number = names;
    if (parent == FUSE_ROOT_ID && strcmp(name, "store") == 0)
        entry.ino = STORE;
    else if (parent == STORE && sscanf(name, "secret-%lu", &number) == 1 && number < names)
        entry.ino = FIRST + number;
    if (entry.ino == 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    entry.attr = attributes(entry.ino);
    fuse_reply_entry(request, &entry);
}

static void get_attributes(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *unused)
{
    struct stat status = attributes(inode);
    (void)unused;
    fuse_reply_attr(request, &status, TIMEOUT);
}

static void open_by_itself(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *unused)
{
    (void)inode, (void)unused;
    fuse_reply_err(request, ENOSYS);
}

static void read_file(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *unused)
{
    char content[SIZE + 1];
    size_t start = offset < SIZE ? (size_t)offset : SIZE, rest = SIZE - start;
    (void)unused;
    snprintf(content, sizeof content, "%064lu", (unsigned long)inode - FIRST);
    fuse_reply_buf(request, content + start, size < rest ? size : rest);
}

static void read_directory(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *unused)
{
    char *buffer = malloc(size), name[32] = "store";
    unsigned long entries = inode == STORE ? names : 1;
    size_t used = 0;
    (void)unused;
    if (buffer == NULL) {
        fuse_reply_err(request, ENOMEM);
        return;
    }
    for (unsigned long number = (unsigned long)offset; number < entries; number++) {
        struct stat status = attributes(inode == STORE ? FIRST + number : STORE);
        size_t more;
        if (inode == STORE)
            snprintf(name, sizeof name, "secret-%04lu", number);
        more = fuse_add_direntry(request, buffer + used, size - used, name, &status, (off_t)number + 1);
        if (more > size - used)
            break;
        used += more;
    }
    fuse_reply_buf(request, buffer, used);
    free(buffer);
}

int main(int count, char **arguments)
{
    static const struct fuse_lowlevel_ops operations = {
        .init = init,
        .lookup = lookup,
        .getattr = get_attributes,
        .open = open_by_itself,
        .opendir = open_by_itself,
        .read = read_file,
        .readdir = read_directory, /* libfuse answers with ENOSYS what is not here, such as FLUSH */
    };
    char *options[] = {"bare", "-oro,nosuid,nodev,noexec,default_permissions,fsname=bare,subtype=bare", NULL};
    struct fuse_args given = FUSE_ARGS_INIT(2, options);
    struct fuse_session *session;
    if (count != 3) {
        fputs("usage: bare NAMES MOUNTPOINT\n", stderr);
        return 2;
    }
    names = strtoul(arguments[1], NULL, 10);
    session = fuse_session_new(&given, &operations, sizeof operations, NULL);
    if (session == NULL || fuse_session_mount(session, arguments[2]) != 0)
        return 1;
    fuse_session_loop(session);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
