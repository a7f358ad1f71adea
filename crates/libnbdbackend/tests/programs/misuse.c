/* Every wrong use that the library can know of, between right ones: each is an error, and the device
 * goes on. The test plays the holder and the kernel. */
#include <errno.h>
#include <nbdbackend.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void expect(long found, long expected, const char *call, int line)
{
	if (found == expected)
		return;
	printf("line %d: %s is %ld and not %ld (%s)\n", line, call, found, expected, nbdb_error());
	exit(1);
}
#define EXPECT(call, expected) expect((long)(call), (expected), #call, __LINE__)

static int queue;

/* The next request or event. */
static struct nbdb_request next(void)
{
	struct nbdb_request request;
	struct pollfd poll_fd = {nbdb_queue_fd(queue), POLLIN, 0};
	poll(&poll_fd, 1, -1);
	EXPECT(nbdb_take(queue, &request, sizeof request, 1), 1);
	return request;
}

static void *complete(void *handle)
{
	EXPECT(nbdb_complete(*(uint64_t *)handle, 0), 0);
	return NULL;
}

static void with_nothing_open(void)
{
	struct nbdb_open_options options = {.struct_size = 3};
	EXPECT(nbdb_open(&options), -EINVAL);
	EXPECT(strstr(nbdb_error(), "sizeof") != NULL, 1);
	options = (struct nbdb_open_options){sizeof options, "sda", NULL};
	EXPECT(nbdb_open(&options), -EINVAL);
	options.device = "nbd77";
	EXPECT(nbdb_open(&options), -ENOENT);
	options.replay = "capture";
	EXPECT(nbdb_open(&options), -EINVAL);
	options = (struct nbdb_open_options){sizeof options, "\xff", NULL};
	EXPECT(nbdb_open(&options), -EINVAL);
	EXPECT(nbdb_open(NULL), -ENODEV);
	EXPECT(nbdb_log_to(NULL, NULL), -EFAULT);
	EXPECT(nbdb_log_to_stderr(NULL), -EFAULT);
	EXPECT(nbdb_close(1), -EBADF);
	EXPECT(nbdb_close(-1), -EBADF);
	EXPECT(nbdb_wait(0), -EBADF);
	EXPECT(nbdb_queue_fd(1), -EBADF);
	EXPECT(nbdb_complete(0, 0), -ENOENT);
	EXPECT(nbdb_complete(1ull << 32, 0), -ENOENT);
	EXPECT(nbdb_complete_read(1, NULL, 0), -EFAULT);
	EXPECT(nbdb_buffer(12345) == NULL, 1);
}

static void before_the_start(int device)
{
	struct nbdb_open_options options = {sizeof options, "/dev/nbd0", NULL};
	EXPECT(nbdb_open(&options), -EBUSY); /* it is open */
	char name[33];
	EXPECT(nbdb_wait(device), -EINVAL);
	EXPECT(nbdb_keep(device, "memory", 0), -EBUSY);
	EXPECT(nbdb_stored(device, "memory"), -EBUSY);
	EXPECT(nbdb_examine(device), 1);
	EXPECT(nbdb_examine(device), 1);
	EXPECT(nbdb_stored_name(device, 0, name, sizeof name), 0);
	EXPECT(strcmp(name, "lock"), 0);
	EXPECT(nbdb_stored_name(device, 0, name, 4), -ERANGE);
	EXPECT(nbdb_stored_name(device, 0, NULL, 4), -EFAULT);
	EXPECT(nbdb_stored_name(device, 1, name, sizeof name), -ENOENT);
	EXPECT(nbdb_stored(device, "memory"), -ENOENT);
	EXPECT(nbdb_stored(device, NULL), -EFAULT);
	int lock = nbdb_stored(device, "lock");
	EXPECT(lock >= 0 && close(lock) == 0, 1);
	EXPECT(nbdb_name(device, name, sizeof name), 0);
	EXPECT(strcmp(name, "nbd0"), 0);
	struct nbdb_geometry geometry = {sizeof geometry, 1 << 20, 512, NBDB_FLUSH};
	EXPECT(nbdb_attached(device, &geometry), 0);
	EXPECT(nbdb_attached(device, NULL), -EFAULT);
	struct nbdb_serve_options serve = {sizeof serve, .description = "misuse:"};
	struct nbdb_callbacks callbacks = {.struct_size = sizeof callbacks};
	EXPECT(nbdb_start(device, &geometry, &callbacks, &serve), -EINVAL); /* no read */
	EXPECT(nbdb_start(device, &geometry, NULL, &serve), -EFAULT);
	EXPECT(nbdb_start_queued(device, NULL, queue, &serve), -EFAULT);
	EXPECT(nbdb_start_queued(device, &geometry, queue + 1, &serve), -EBADF);
	EXPECT(nbdb_start_queued(device + 1, &geometry, queue, &serve), -EBADF);
	serve.description = NULL;
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), -EFAULT);
	serve.description = "misuse:";
	serve.flags = 1u << 31;
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), -EINVAL);
	serve.flags = 0;
	geometry.block_size = 100;
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), -EINVAL);
}

static void while_granted(int device)
{
	struct nbdb_request granted = next();
	EXPECT(granted.type, NBDB_GRANTED);
	EXPECT(granted.context == &queue, 1);
	int memory = memfd_create("memory", 0);
	EXPECT(nbdb_keep(device, "memory", memory), 0);
	EXPECT(nbdb_keep(device, NULL, memory), -EFAULT);
	EXPECT(nbdb_keep(device, "x", 12345), -EBADF);
	close(memory);
	int lock = nbdb_stored(device, "lock");
	EXPECT(lock >= 0 && close(lock) == 0, 1);
	EXPECT(nbdb_close(device), -EBUSY);
	EXPECT(nbdb_buffer(granted.handle) == NULL, 1);
	EXPECT(nbdb_complete_read(granted.handle, "", 1), -EINVAL);
	EXPECT(nbdb_complete(granted.handle, 0), 0);
	EXPECT(nbdb_complete(granted.handle, 0), -ENOENT);
	EXPECT(next().type, NBDB_SERVING);
	EXPECT(nbdb_keep(device, "x", 0), -EBUSY);
}

static void while_serving(int device)
{
	struct nbdb_request request;
	EXPECT(nbdb_take(queue, NULL, sizeof request, 1), -EFAULT);
	EXPECT(nbdb_take(queue, &request, sizeof request - 1, 1), -EINVAL);
	EXPECT(nbdb_take(queue, &request, sizeof request, 0), 0);
	EXPECT(nbdb_take(queue + 7, &request, sizeof request, 1), -EBADF);

	/* A write, completed by another thread, twice. */
	request = next();
	EXPECT(request.type, NBDB_CMD_WRITE);
	EXPECT(request.length, 4096);
	EXPECT(((const char *)request.data)[4095], 7);
	EXPECT(nbdb_buffer(request.handle) == NULL, 1);
	EXPECT(nbdb_complete_read(request.handle, request.data, 4096), -EINVAL);
	pthread_t thread;
	pthread_create(&thread, NULL, complete, &request.handle);
	pthread_join(thread, NULL);
	EXPECT(nbdb_complete(request.handle, 0), -ENOENT);
	EXPECT(nbdb_complete(request.handle, EIO), -ENOENT);

	/* A read: the same buffer at each call; data of a wrong length is refused. */
	request = next();
	EXPECT(request.type, NBDB_CMD_READ);
	char *buffer = nbdb_buffer(request.handle);
	EXPECT(buffer != NULL && buffer == nbdb_buffer(request.handle), 1);
	EXPECT(nbdb_complete_read(request.handle, buffer, 1), -EINVAL);
	memset(buffer, 9, request.length);
	EXPECT(nbdb_complete(request.handle, 0), 0);
	EXPECT(nbdb_complete_read(request.handle, "x", 1), -ENOENT);
	EXPECT(nbdb_buffer(request.handle) == NULL, 1);

	/* A read without data is an error of both sides. */
	request = next();
	EXPECT(nbdb_complete(request.handle, 0), -EINVAL);

	/* One that fails with what is no errno. */
	request = next();
	EXPECT(nbdb_complete(request.handle, 70000), 0);
	EXPECT(nbdb_close(device), -EBUSY);
	EXPECT(nbdb_queue_close(queue), -EBUSY);
}

int main(void)
{
	with_nothing_open();
	queue = nbdb_queue_open();
	struct nbdb_open_options options = {sizeof options, "nbd0", NULL};
	int device = nbdb_open(&options);
	EXPECT(device > 0, 1);
	before_the_start(device);
	struct nbdb_geometry geometry = {sizeof geometry, 1 << 20, 512, NBDB_FLUSH};
	struct nbdb_serve_options serve = {sizeof serve, "misuse:", &queue, NBDB_TELL_GRANTED, 0};
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), 0);
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), -EBUSY);
	EXPECT(nbdb_examine(device), -EBUSY);
	EXPECT(nbdb_open(&options), -EBUSY);
	while_granted(device);
	while_serving(device);

	/* The device is detached while a request is in flight: it ends when that is completed. */
	struct nbdb_request last = next();
	usleep(100000);
	EXPECT(nbdb_close(device), -EBUSY);
	EXPECT(nbdb_complete(last.handle, 0), 0);
	struct nbdb_request ended = next();
	EXPECT(ended.type, NBDB_ENDED);
	EXPECT(ended.error, 0);
	EXPECT(nbdb_wait(device), 0);
	EXPECT(nbdb_complete(last.handle, 0), -ENOENT);
	EXPECT(nbdb_close(device), 0);
	EXPECT(nbdb_close(device), -EBADF);
	EXPECT(nbdb_wait(device), -EBADF);
	EXPECT(nbdb_start_queued(device, &geometry, queue, &serve), -EBADF);
	EXPECT(nbdb_queue_close(queue), 0);
	EXPECT(nbdb_queue_close(queue), -EBADF);
	EXPECT(nbdb_take(queue, &last, sizeof last, 1), -EBADF);
	printf("all as expected\n");
	return 0;
}
