/* A mirror: writes go to two files, reads come from the first. With libnbdbackend-dev installed:
 *   cc -o mirror mirror.c -lnbdbackend && nbd-ctl attach -- ./mirror a.img b.img
 * If it dies between its two writes, the next mirror executes the request again. */
#include <errno.h>
#include <fcntl.h>
#include <nbdbackend.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
static int files[2];
static int mirror_read(void *context, void *buffer, size_t length, uint64_t offset)
{
	(void)context;
	for (char *at = buffer; length > 0;) {
		ssize_t count = pread(files[0], at, length, (off_t)offset);
		if (count <= 0)
			return count < 0 ? errno : EIO;
		at += count, length -= (size_t)count, offset += (uint64_t)count;
	}
	return 0;
}

static int write_all(int file, const char *data, size_t length, uint64_t offset)
{
	while (length > 0) {
		ssize_t count = pwrite(file, data, length, (off_t)offset);
		if (count <= 0)
			return count < 0 ? errno : ENOSPC;
		data += count, length -= (size_t)count, offset += (uint64_t)count;
	}
	return 0;
}

static int mirror_write(void *context, const void *data, size_t length, uint64_t offset,
			uint32_t flags)
{
	(void)context, (void)flags;
	int error = write_all(files[0], data, length, offset);
	return error ? error : write_all(files[1], data, length, offset);
}

static int mirror_flush(void *context)
{
	(void)context;
	return fdatasync(files[0]) || fdatasync(files[1]) ? errno : 0;
}

int main(int count, char **words)
{
	struct stat a, b;
	if (count != 3 || (files[0] = open(words[1], O_RDWR)) < 0 || fstat(files[0], &a) ||
	    (files[1] = open(words[2], O_RDWR)) < 0 || fstat(files[1], &b))
		return fprintf(stderr, "usage: mirror FILE FILE\n"), 2;
	uint64_t size = (uint64_t)(a.st_size < b.st_size ? a.st_size : b.st_size) / 512 * 512;
	struct nbdb_geometry geometry = {sizeof geometry, size, 512, NBDB_FLUSH};
	struct nbdb_callbacks callbacks = {sizeof callbacks, .read = mirror_read,
					   .write = mirror_write, .flush = mirror_flush};
	struct nbdb_serve_options options = {sizeof options, .description = "mirror:"};
	return nbdb_run(&geometry, &callbacks, &options);
}
