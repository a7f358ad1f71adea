/* The connection that a holder has left to this process is one device's, and no other's. */
#include <errno.h>
#include <nbdbackend.h>

static int read_block(void *context, void *buffer, size_t length, uint64_t offset)
{
	(void)context, (void)buffer, (void)length, (void)offset;
	return 0;
}

int main(void)
{
	struct nbdb_geometry geometry = {sizeof geometry, 1 << 20, 512, NBDB_READ_ONLY};
	struct nbdb_callbacks callbacks = {sizeof callbacks, .read = read_block};
	struct nbdb_serve_options options = {sizeof options, "inherited:", 0, NBDB_NEVER_BLOCKS, 0};
	int device = nbdb_open(0);
	struct nbdb_geometry attached = {sizeof attached, 0, 0, 0};
	if (device < 0 || nbdb_open(0) != -EBUSY || nbdb_attached(device, &attached) != 1)
		return 1;
	if (attached.size != geometry.size || attached.block_size != 512)
		return 2;
	if (nbdb_start(device, &geometry, &callbacks, &options) || nbdb_wait(device))
		return 3;
	return nbdb_close(device) || nbdb_open(0) != -EBUSY ? 4 : 0;
}
