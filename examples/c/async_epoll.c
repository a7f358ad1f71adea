/* A daemon with an event loop that serves any number of devices from files, each given as
 * DEVICE=FILE and attached with `nbd-ctl attach --external --device DEVICE`:
 *   cc -o async_epoll async_epoll.c -lnbdbackend && ./async_epoll nbd0=a.img nbd1=b.img
 * It ends when all of them are detached. Started again after a crash it goes on; with --takeover it
 * takes them from a living one, which the holders kill: first it connects to all holders and looks at
 * what is stored, and only then asks for the lanes, so that the devices pause as shortly as possible.
 *
 * The files are mapped, so what is written is the kernel's at once and survives this process. All that
 * an event loop must not do is wait: a real one would send requests somewhere, and complete them
 * when the answers come, in any order. */
#include <errno.h>
#include <fcntl.h>
#include <nbdbackend.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BATCH = 64, BLOCK_SIZE = 512 };

struct disk {
	const char *name; /* nbd0 */
	int device;       /* of the library */
	char *bytes;
	uint64_t size;
	double started;
};

static double milliseconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int failed(const char *what, const char *why)
{
	fprintf(stderr, "async_epoll: %s: %s\n", what, why);
	return -1;
}

/* Opens the file of a word like nbd0=disk.img, and connects to the device's holder. */
static int open_disk(struct disk *disk, char *word)
{
	char *path = strchr(word, '=');
	if (!path)
		return failed(word, "not like nbd0=FILE");
	*path++ = '\0';
	int file = open(path, O_RDWR | O_CLOEXEC);
	struct stat status;
	if (file < 0 || fstat(file, &status))
		return failed(path, strerror(errno));
	disk->name = word;
	disk->size = (uint64_t)status.st_size / BLOCK_SIZE * BLOCK_SIZE;
	disk->bytes = mmap(NULL, disk->size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	if (disk->bytes == MAP_FAILED)
		return failed(path, strerror(errno));
	struct nbdb_open_options options = {.struct_size = sizeof options, .device = word};
	disk->device = nbdb_open(&options);
	if (disk->device < 0)
		return failed(word, nbdb_error());
	struct nbdb_geometry attached = {.struct_size = sizeof attached};
	if (nbdb_attached(disk->device, &attached) == 1 && attached.size > disk->size)
		return failed(path, "smaller than the device");
	return 0;
}

static int start(struct disk *disk, int queue, uint32_t flags)
{
	char description[256];
	snprintf(description, sizeof description, "async_epoll:%s", disk->name);
	struct nbdb_geometry geometry = {sizeof geometry, disk->size, BLOCK_SIZE,
					 NBDB_FLUSH | NBDB_TRIM | NBDB_ZERO};
	struct nbdb_serve_options options = {.struct_size = sizeof options, .context = disk,
					     .description = description, .flags = flags};
	disk->started = milliseconds();
	return nbdb_start_queued(disk->device, &geometry, queue, &options) < 0
		       ? failed(disk->name, nbdb_error())
		       : 0;
}

/* Executes a request or takes note of an event; returns how many devices have ended. */
static int execute(const struct nbdb_request *request)
{
	struct disk *disk = request->context;
	char *bytes = disk->bytes + request->offset;
	int error = 0;
	switch (request->type) {
	case NBDB_CMD_READ:
		nbdb_complete_read(request->handle, bytes, request->length);
		return 0;
	case NBDB_CMD_WRITE: memcpy(bytes, request->data, request->length); break;
	case NBDB_CMD_ZERO: memset(bytes, 0, request->length); break;
	case NBDB_CMD_FLUSH: error = msync(disk->bytes, disk->size, MS_SYNC) ? errno : 0; break;
	case NBDB_CMD_TRIM: break;
	case NBDB_SERVING:
		printf("%s: served after %.1f ms, %llu requests recovered\n", disk->name,
		       milliseconds() - disk->started, (unsigned long long)request->length);
		return fflush(stdout), 0;
	case NBDB_ENDED:
		printf("%s: ended: %s\n", disk->name, strerror(-request->error));
		return fflush(stdout), nbdb_close(disk->device), munmap(disk->bytes, disk->size), 1;
	default: error = EINVAL; break;
	}
	nbdb_complete(request->handle, error);
	return 0;
}

static int serve(int queue, int left)
{
	struct epoll_event event = {.events = EPOLLIN};
	int poll = epoll_create1(EPOLL_CLOEXEC);
	if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, nbdb_queue_fd(queue), &event))
		return failed("epoll", strerror(errno));
	while (left > 0) {
		if (epoll_wait(poll, &event, 1, -1) < 0 && errno != EINTR)
			return failed("epoll_wait", strerror(errno));
		struct nbdb_request batch[MAX_BATCH];
		int count = nbdb_take(queue, batch, sizeof batch[0], MAX_BATCH);
		for (int at = 0; at < count; at++)
			left -= execute(&batch[at]);
	}
	close(poll);
	return nbdb_queue_close(queue);
}

int main(int count, char **words)
{
	int takeover = count > 1 && !strcmp(words[1], "--takeover");
	int disks_count = count - 1 - takeover;
	struct disk *disks = calloc((size_t)count, sizeof *disks);
	/* Some descriptors a device: more than select() could take, which is not used here. */
	struct rlimit limit;
	if (!getrlimit(RLIMIT_NOFILE, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	nbdb_log_to_stderr("async_epoll");
	nbdb_io_flusher();
	int queue = nbdb_queue_open();
	if (disks_count < 1 || !disks || queue < 0)
		return fprintf(stderr, "usage: async_epoll [--takeover] DEVICE=FILE...\n"), 2;
	for (int at = 0; at < disks_count; at++)
		if (open_disk(&disks[at], words[1 + takeover + at]))
			return 1;
	for (int at = 0; takeover && at < disks_count; at++)
		if (nbdb_examine(disks[at].device) < 0)
			return failed(disks[at].name, nbdb_error()), 1;
	for (int at = 0; at < disks_count; at++)
		if (start(&disks[at], queue, takeover ? NBDB_TAKEOVER : 0))
			return 1;
	int result = serve(queue, disks_count);
	free(disks);
	return result ? 1 : 0;
}
