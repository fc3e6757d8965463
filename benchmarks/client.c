/* A client without an interpreter in it: reads the same thing over and over, in several processes at once.
 *
 *   client SECONDS PROCESSES file PATH...          open, fstat, read, close
 *   client SECONDS PROCESSES epoll PATH...         as os.ReadFile of Go: with epoll, and a read that finds the end
 *   client SECONDS PROCESSES list DIRECTORY        opendir, readdir of all, closedir
 *   client SECONDS PROCESSES http PORT TARGET [HEADER]   GET from 127.0.0.1, on one connection that is kept alive
 *
 * Process number i reads the i-th path. Prints the seconds that one operation took each process, on average. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];
static int epoll, connection;
static char request[4096];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void read_file(const char *path)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0 || read(file, buffer, sizeof buffer) != status.st_size)
        err(1, "%s", path);
    close(file);
}

static void read_with_epoll(const char *path)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC), added;
    if (file < 0)
        err(1, "%s", path);
    added = epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event) == 0;
    if (fstat(file, &status) != 0)
        err(1, "%s", path);
    while (read(file, buffer, sizeof buffer) > 0)
        ;
    if (added)
        epoll_ctl(epoll, EPOLL_CTL_DEL, file, &event);
    close(file);
}

static void list(const char *path)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        err(1, "%s", path);
    while (readdir(directory) != NULL)
        ;
    closedir(directory);
}

static void get(const char *unused)
{
    size_t got = 0, whole = 0;
    (void)unused;
    if (write(connection, request, strlen(request)) < 0)
        err(1, "write");
    while (whole == 0 || got < whole) {
        ssize_t more = read(connection, buffer + got, sizeof buffer - 1 - got);
        char *end, *length;
        if (more <= 0)
            err(1, "the server has closed the connection");
        got += (size_t)more;
        buffer[got] = '\0';
        if (whole == 0 && (end = strstr(buffer, "\r\n\r\n")) != NULL) {
            if (strncmp(buffer, "HTTP/1.1 200 ", 13) != 0 || (length = strcasestr(buffer, "content-length:")) == NULL)
                errx(1, "the server answers %.40s", buffer);
            whole = (size_t)(end + 4 - buffer) + strtoul(length + 15, NULL, 10);
        }
    }
}

static void open_connection(char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(arguments[0]))};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection, (struct sockaddr *)&address, sizeof address) != 0)
        err(1, "connect");
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s%s\r\n", arguments[1],
             arguments[2] ? arguments[2] : "", arguments[2] ? "\r\n" : "");
}

int main(int count, char **arguments)
{
    double seconds, end;
    long processes, total = 0, done;
    int start[2], results[2];
    void (*operation)(const char *) = NULL;
    if (count < 5)
        errx(2, "usage: client SECONDS PROCESSES file|epoll|list|http ARGUMENT...");
    seconds = atof(arguments[1]);
    processes = atol(arguments[2]);
    if (strcmp(arguments[3], "file") == 0)
        operation = read_file;
    else if (strcmp(arguments[3], "epoll") == 0)
        operation = read_with_epoll;
    else if (strcmp(arguments[3], "list") == 0)
        operation = list;
    else if (strcmp(arguments[3], "http") == 0)
        operation = get;
    if (operation == NULL || pipe(start) != 0 || pipe(results) != 0)
        errx(2, "cannot do that");
    for (long number = 0; number < processes; number++)
        if (fork() == 0) {
            const char *path = arguments[4 + number % (count - 4)];
            char unused;
            epoll = epoll_create1(EPOLL_CLOEXEC);
            if (operation == get)
                open_connection(arguments + 4);
            operation(path);
            close(start[1]);
            if (read(start[0], &unused, 1) != 0) /* until all are ready */
                err(1, "start");
            end = now() + seconds;
            for (done = 0; now() < end; done++)
                operation(path);
            return write(results[1], &done, sizeof done) != sizeof done;
        }
    close(results[1]);
    usleep(100000); /* connections and first reads */
    close(start[1]);
    for (long number = 0; number < processes; number++) {
        int status;
        wait(&status);
        if (status != 0)
            return 1;
    }
    while (read(results[0], &done, sizeof done) == sizeof done)
        total += done;
    printf("%.9f\n", seconds * (double)processes / (double)total);
    return total == 0;
}
