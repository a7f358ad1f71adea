/* Returns of callbacks, by the block that is read; its first flush fails. */
#include <errno.h>
#include <limits.h>
#include <nbdbackend.h>
#include <stdio.h>
#include <string.h>

static int flushes;

static int read_block(void *context, void *buffer, size_t length, uint64_t offset)
{
	static const int returns[] = {0, ENOSPC, -ENOSPC, 4096, INT_MIN, EXDEV};
	(void)context;
	memset(buffer, 0xab, length);
	return returns[offset / 512 % 6];
}

static int write_block(void *context, const void *data, size_t length, uint64_t offset,
		       uint32_t flags)
{
	(void)context, (void)data, (void)length, (void)offset;
	printf("flags %u\n", flags);
	return 0;
}

static int flush(void *context)
{
	(void)context;
	return flushes++ == 0 ? EIO : 0;
}

static void closed(void *context)
{
	(void)context;
	printf("%d flush\n", flushes);
}

int main(void)
{
	struct nbdb_geometry geometry = {sizeof geometry, 1 << 20, 512, NBDB_FLUSH | NBDB_FUA};
	struct nbdb_callbacks callbacks = {sizeof callbacks, .read = read_block, .write = write_block,
					   .flush = flush, .close = closed};
	struct nbdb_serve_options options = {sizeof options, .description = "errors:"};
	return nbdb_run(&geometry, &callbacks, &options);
}
