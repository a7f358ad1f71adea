// A callback that throws, which none may.
#include <nbdbackend.h>
#include <stdexcept>

static int read_block(void *, void *, size_t, uint64_t)
{
	throw std::runtime_error("thrown");
}

int main()
{
	nbdb_geometry geometry = {sizeof geometry, 1 << 20, 512, NBDB_READ_ONLY};
	nbdb_callbacks callbacks = {};
	callbacks.struct_size = sizeof callbacks;
	callbacks.read = read_block;
	nbdb_serve_options options = {sizeof options, "throws:", nullptr, 0, 0};
	return nbdb_run(&geometry, &callbacks, &options);
}
