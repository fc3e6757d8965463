/* libfuse's fuse_session_process_buf, in front of the real one: READ, WRITE, READDIR and READDIRPLUS get the number of
 * their inode as handle, where the kernel has sent none. It sends none once OPEN was answered ENOSYS, because then it
 * opens files by itself, and pyfuse3 passes nothing but the handle on. See secretfs/fuse/inode_for_handle.py.
 *
 * It rests on the kernel's protocol (linux/fuse.h), on how libfuse's struct fuse_buf begins, and on the dynamic linker,
 * which looks into what was loaded with RTLD_GLOBAL before it looks into libfuse. Neither Python nor libfuse is
 * needed to compile it. */
#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>

struct fuse_buf_head {
	size_t size;
	int flags;
	void *mem;
};

enum { IS_FD = 1 << 1 }; /* FUSE_BUF_IS_FD: the request is in a pipe */

struct request_with_handle {
	struct fuse_in_header header;
	uint64_t fh;
};

typedef void process_buf(void *session, const struct fuse_buf_head *buffer);

process_buf *secretfs_process_buf; /* libfuse's, which secretfs sets before the first request */
unsigned long secretfs_requests;   /* how many have come this way */

void fuse_session_process_buf(void *session, const struct fuse_buf_head *buffer)
{
	struct request_with_handle *request = buffer->mem;

	secretfs_requests++;
	if (!(buffer->flags & IS_FD) && buffer->size >= sizeof *request && !request->fh) {
		switch (request->header.opcode) {
		case FUSE_READ:
		case FUSE_WRITE:
		case FUSE_READDIR:
		case FUSE_READDIRPLUS:
			request->fh = request->header.nodeid;
		}
	}
	secretfs_process_buf(session, buffer);
}
