// A plugin for tests: a disk in memory or in a file, that says what it is asked to do and misbehaves
// when it is told to. Compiled several times, with other macros:
//
//   API      version of the interface, 1 or 2
//   MODEL    thread model
//   WITHOUT_X  leaves that callback out
//
// Parameters: disk=FILE, size=BYTES, log=FILE (a line about each callback), result.CALLBACK=NUMBER (what
// it returns in place of doing anything), errno.CALLBACK=NUMBER, set_error.CALLBACK=NUMBER,
// die.CALLBACK=exit|crash|daemon, min=, preferred=, max= (block_size), meet=NUMBER (pread waits for so
// many to be there at once), pause=MILLISECONDS (how long pread takes).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef API
#define API 2
#endif
#ifndef MODEL
#define MODEL NBDKIT_THREAD_MODEL_PARALLEL
#endif

#define NBDKIT_API_VERSION API
#include <nbdkit-plugin.h>
#define THREAD_MODEL MODEL

static char parameters[64][256];
static int count;
static int disk = -1, logged = -1;
static int inside, most;

static const char *parameter(const char *group, const char *callback)
{
	char key[64];
	int i;
	snprintf(key, sizeof key, "%s%s=", group, callback);
	for (i = 0; i < count; i++)
		if (strncmp(parameters[i], key, strlen(key)) == 0)
			return parameters[i] + strlen(key);
	return NULL;
}

static long number(const char *key, long otherwise)
{
	const char *text = parameter("", key);
	return text ? strtol(text, NULL, 0) : otherwise;
}

// Notes a callback. True if it shall do nothing and return *result.
static int begins(const char *callback, const char *detail, int *result)
{
	const char *text = parameter("die.", callback);
	if (logged >= 0)
		dprintf(logged, "%s%s%s\n", callback, *detail ? " " : "", detail);
	if (text && strcmp(text, "exit") == 0) {
		nbdkit_error("%s had enough: %d", callback, 7);
		exit(0);
	}
	if (text && strcmp(text, "crash") == 0)
		abort();
	if (text && strcmp(text, "daemon") == 0 && daemon(1, 1) != 0)
		abort();
	text = parameter("result.", callback);
	if (!text)
		return 0;
	*result = atoi(text);
	text = parameter("set_error.", callback);
	if (text)
		nbdkit_set_error(atoi(text));
	text = parameter("errno.", callback);
	errno = text ? atoi(text) : 0;
	if (*result == -1)
		nbdkit_error("%s refuses", callback);
	return 1;
}

#define BEGIN(callback, ...)                                                                       \
	char detail[128] = "";                                                                         \
	int result = 0;                                                                                \
	snprintf(detail, sizeof detail, __VA_ARGS__);                                                  \
	if (begins(callback, detail, &result))                                                         \
		return result

static void on_load(void)
{
	const char *early = getenv("NBD_TEST_PLUGIN_DIES");
	if (early && strcmp(early, "exit") == 0)
		exit(3);
	if (early && strcmp(early, "crash") == 0)
		abort();
	if (early && strcmp(early, "daemon") == 0 && daemon(1, 1) != 0)
		abort();
}

static void on_unload(void)
{
	if (logged >= 0)
		dprintf(logged, "unload\n");
}

static int on_config(const char *key, const char *value)
{
	if (strcmp(key, "unknown") == 0) {
		nbdkit_error("no key '%s' here, and %% is a percent sign", key);
		return -1;
	}
	if (strcmp(key, "log") == 0)
		logged = open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	snprintf(parameters[count++ % 64], sizeof parameters[0], "%s=%s", key, value);
	BEGIN("config", "%s=%s", key, value);
	return 0;
}

static int on_config_complete(void)
{
	BEGIN("config_complete", "%s", "");
	return 0;
}

static int on_get_ready(void)
{
	BEGIN("get_ready", "%s", "");
	return 0;
}

static int on_after_fork(void)
{
	BEGIN("after_fork", "%s", "");
	return 0;
}

static int on_preconnect(int readonly)
{
	BEGIN("preconnect", "%d", readonly);
	return 0;
}

static int opens(void)
{
	BEGIN("open", "%s", "");
	return 1;
}

static void *on_open(int readonly)
{
	const char *path = parameter("", "disk");
	long size = number("size", 0);
	if (opens() != 1)
		return NULL;
	disk = path ? open(path, O_RDWR | O_CLOEXEC) : memfd_create("disk", MFD_CLOEXEC);
	if (disk < 0 || (!path && ftruncate(disk, size > 0 ? size : 1 << 20) != 0)) {
		nbdkit_error("%s: %m", path ? path : "memory");
		return NULL;
	}
	(void)readonly;
	return &disk;
}

static void on_close(void *handle)
{
	if (logged >= 0)
		dprintf(logged, "close\n");
	close(*(int *)handle);
	disk = -1;
}

static void on_cleanup(void)
{
	if (logged >= 0)
		dprintf(logged, "cleanup, at most %d at once\n", most);
}

static int64_t on_get_size(void *handle)
{
	struct stat status;
	long size = number("size", -2);
	BEGIN("get_size", "%s", "");
	if (size != -2)
		return size;
	return fstat(*(int *)handle, &status) == 0 ? status.st_size : -1;
}

#define ANSWER(name, otherwise)                                                                    \
	static __attribute__((unused)) int on_##name(void *handle)                                     \
	{                                                                                              \
		(void)handle;                                                                              \
		BEGIN(#name, "%s", "");                                                                    \
		return otherwise;                                                                          \
	}
ANSWER(can_write, 1)
ANSWER(can_flush, 1)
ANSWER(is_rotational, 0)
ANSWER(can_trim, 1)
ANSWER(can_zero, 1)
ANSWER(can_fast_zero, 1)
ANSWER(can_fua, NBDKIT_FUA_NATIVE)
ANSWER(can_cache, NBDKIT_CACHE_NATIVE)
ANSWER(can_extents, 1)
ANSWER(can_multi_conn, 1)

static int all_at_once(void)
{
	long wanted = number("meet", 0), pause = number("pause", 0), waited = 0;
	int now = __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
	int seen = __atomic_load_n(&most, __ATOMIC_SEQ_CST);
	while (now > seen && !__atomic_compare_exchange_n(&most, &seen, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		;
	for (; __atomic_load_n(&most, __ATOMIC_SEQ_CST) < wanted && waited < 60000; waited++)
		usleep(1000);
	if (pause > 0)
		usleep(pause * 1000);
	__atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
	return 0;
}

static int reads(void *handle, void *data, uint32_t length, uint64_t offset, uint32_t flags)
{
	BEGIN("pread", "%u at %llu flags %u", length, (unsigned long long)offset, flags);
	all_at_once();
	if (parameter("", "named"))
		return snprintf(data, length, "%s", nbdkit_export_name()), 0;
	return pread(*(int *)handle, data, length, offset) == (ssize_t)length ? 0 : -1;
}

static __attribute__((unused)) int writes(void *handle, const void *data, uint32_t length,
                                          uint64_t offset, uint32_t flags)
{
	BEGIN("pwrite", "%u at %llu flags %u", length, (unsigned long long)offset, flags);
	return pwrite(*(int *)handle, data, length, offset) == (ssize_t)length ? 0 : -1;
}

static __attribute__((unused)) int flushes(void *handle, uint32_t flags)
{
	(void)handle;
	BEGIN("flush", "flags %u", flags);
	return 0;
}

static __attribute__((unused)) int punches(const char *callback, int fd, uint32_t length,
                                           uint64_t offset, uint32_t flags)
{
	BEGIN(callback, "%u at %llu flags %u", length, (unsigned long long)offset, flags);
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

#if API == 1
static int on_pread(void *handle, void *data, uint32_t length, uint64_t offset)
{
	return reads(handle, data, length, offset, 99);
}
static __attribute__((unused)) int on_pwrite(void *handle, const void *data, uint32_t length,
                                             uint64_t offset)
{
	return writes(handle, data, length, offset, 99);
}
static __attribute__((unused)) int on_flush(void *handle) { return flushes(handle, 99); }
static __attribute__((unused)) int on_trim(void *handle, uint32_t length, uint64_t offset)
{
	return punches("trim", *(int *)handle, length, offset, 99);
}
static __attribute__((unused)) int on_zero(void *handle, uint32_t length, uint64_t offset,
                                           int may_trim)
{
	return punches("zero", *(int *)handle, length, offset, may_trim);
}
#else
#define on_pread reads
#define on_pwrite writes
#define on_flush flushes
static __attribute__((unused)) int on_trim(void *handle, uint32_t length, uint64_t offset,
                                           uint32_t flags)
{
	return punches("trim", *(int *)handle, length, offset, flags);
}
static __attribute__((unused)) int on_zero(void *handle, uint32_t length, uint64_t offset,
                                           uint32_t flags)
{
	return punches("zero", *(int *)handle, length, offset, flags);
}
#endif

static __attribute__((unused)) int on_cache(void *handle, uint32_t length, uint64_t offset,
                                            uint32_t flags)
{
	(void)handle;
	BEGIN("cache", "%u at %llu flags %u", length, (unsigned long long)offset, flags);
	return 0;
}

// The first half of the disk is data, the second one a hole.
static __attribute__((unused)) int on_extents(void *handle, uint32_t length, uint64_t offset,
                                              uint32_t flags, struct nbdkit_extents *extents)
{
	uint64_t size = on_get_size(handle), half = size / 2;
	BEGIN("extents", "%u at %llu flags %u", length, (unsigned long long)offset, flags);
	if (number("gap", 0))
		return nbdkit_add_extent(extents, offset + number("gap", 0), 512, 0);
	if (nbdkit_add_extent(extents, 0, half, 0) == -1)
		return -1;
	return nbdkit_add_extent(extents, half, size - half, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO);
}

static __attribute__((unused)) int on_block_size(void *handle, uint32_t *minimum,
                                                 uint32_t *preferred, uint32_t *maximum)
{
	(void)handle;
	*minimum = number("min", 1);
	*preferred = number("preferred", 4096);
	*maximum = number("max", -1);
	BEGIN("block_size", "%s", "");
	return 0;
}

static int on_thread_model(void)
{
	BEGIN("thread_model", "%s", "");
	return NBDKIT_THREAD_MODEL_PARALLEL;
}

static struct nbdkit_plugin plugin = {
	.name = "test",
	.load = on_load,
	.unload = on_unload,
	.config = on_config,
	.config_complete = on_config_complete,
	.get_ready = on_get_ready,
	.after_fork = on_after_fork,
	.preconnect = on_preconnect,
	.thread_model = on_thread_model,
	.open = on_open,
	.close = on_close,
	.cleanup = on_cleanup,
	.get_size = on_get_size,
	.pread = on_pread,
#ifdef KEEPS_ERRNO
	.errno_is_preserved = 1,
#endif
#ifndef WITHOUT_PWRITE
	.pwrite = on_pwrite,
	.can_write = on_can_write,
#endif
#ifndef WITHOUT_FLUSH
	.flush = on_flush,
	.can_flush = on_can_flush,
#endif
#ifndef WITHOUT_CAN_FUA
	.can_fua = on_can_fua,
#endif
#ifndef WITHOUT_TRIM
	.trim = on_trim,
	.can_trim = on_can_trim,
#endif
#ifndef WITHOUT_ZERO
	.zero = on_zero,
	.can_zero = on_can_zero,
	.can_fast_zero = on_can_fast_zero,
#endif
#ifndef WITHOUT_CACHE
	.cache = on_cache,
#endif
#ifndef WITHOUT_CAN_CACHE
	.can_cache = on_can_cache,
#endif
#ifndef WITHOUT_EXTENTS
	.extents = on_extents,
	.can_extents = on_can_extents,
#endif
	.is_rotational = on_is_rotational,
	.can_multi_conn = on_can_multi_conn,
	.block_size = on_block_size,
};

#ifdef SIZE
// As one that was compiled with an older header, and so has a shorter structure.
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void)
{
	plugin._struct_size = SIZE;
	plugin._api_version = API;
	plugin._thread_model = THREAD_MODEL;
	return &plugin;
}
#elif defined(VERSION)
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void)
{
	plugin._struct_size = sizeof plugin;
	plugin._api_version = VERSION;
	plugin._thread_model = THREAD_MODEL;
	return &plugin;
}
#elif defined(NOTHING)
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void) { return NULL; }
#elif defined(UNDEFINED)
extern int nbdkit_from_the_future(void);
NBDKIT_DLL_PUBLIC struct nbdkit_plugin *plugin_init(void)
{
	return nbdkit_from_the_future() ? NULL : &plugin;
}
#elif !defined(NO_PLUGIN)
NBDKIT_REGISTER_PLUGIN(plugin)
#endif
