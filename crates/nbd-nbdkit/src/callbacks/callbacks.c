// The functions of nbdkit-plugin.h and nbdkit-common.h that plugins call, as a shared object.
//
// C is needed for variable arguments only; those functions format their text here. Everything else
// is forwarded to the table that nbd-nbdkit hands over (callbacks/table.rs, in the same order).

#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#define EXPORTED __attribute__((__visibility__("default")))

// X(result, name, parameters, arguments)
#define FORWARDED(X)                                                                               \
	X(char *, absolute_path, (const char *path), (path))                                           \
	X(char *, realpath, (const char *path), (path))                                                \
	X(int64_t, parse_size, (const char *text), (text))                                             \
	X(int, parse_bool, (const char *text), (text))                                                 \
	X(int, parse_int, (const char *what, const char *text, int *r), (what, text, r))               \
	X(int, parse_unsigned, (const char *what, const char *text, unsigned *r), (what, text, r))     \
	X(int, parse_int8_t, (const char *what, const char *text, int8_t *r), (what, text, r))         \
	X(int, parse_uint8_t, (const char *what, const char *text, uint8_t *r), (what, text, r))       \
	X(int, parse_int16_t, (const char *what, const char *text, int16_t *r), (what, text, r))       \
	X(int, parse_uint16_t, (const char *what, const char *text, uint16_t *r), (what, text, r))     \
	X(int, parse_int32_t, (const char *what, const char *text, int32_t *r), (what, text, r))       \
	X(int, parse_uint32_t, (const char *what, const char *text, uint32_t *r), (what, text, r))     \
	X(int, parse_int64_t, (const char *what, const char *text, int64_t *r), (what, text, r))       \
	X(int, parse_uint64_t, (const char *what, const char *text, uint64_t *r), (what, text, r))     \
	X(int, parse_probability, (const char *what, const char *text, double *r), (what, text, r))    \
	X(int, parse_delay, (const char *what, const char *text, unsigned *s, unsigned *ns),           \
	  (what, text, s, ns))                                                                         \
	X(int, read_password, (const char *value, char **password), (value, password))                 \
	X(int, stdio_safe, (void), ())                                                                 \
	X(int, nanosleep, (unsigned s, unsigned ns), (s, ns))                                          \
	X(const char *, export_name, (void), ())                                                       \
	X(int, is_tls, (void), ())                                                                     \
	X(int, peer_name, (struct sockaddr *address, socklen_t *length), (address, length))            \
	X(int64_t, peer_pid, (void), ())                                                               \
	X(int64_t, peer_uid, (void), ())                                                               \
	X(int64_t, peer_gid, (void), ())                                                               \
	X(char *, peer_security_context, (void), ())                                                   \
	X(char *, peer_tls_dn, (void), ())                                                             \
	X(char *, peer_tls_issuer_dn, (void), ())                                                      \
	X(void, set_error, (int error), (error))                                                       \
	X(void, shutdown, (void), ())                                                                  \
	X(void, disconnect, (int force), (force))                                                      \
	X(const char *, strdup_intern, (const char *text), (text))                                     \
	X(const char *, strndup_intern, (const char *text, size_t n), (text, n))                       \
	X(const char *, name, (void), ())                                                              \
	X(const char *, timestamp, (void), ())                                                         \
	X(void *, extents_new, (uint64_t start, uint64_t end), (start, end))                           \
	X(void, extents_free, (void *extents), (extents))                                              \
	X(size_t, extents_count, (const void *extents), (extents))                                     \
	X(int, add_extent, (void *extents, uint64_t offset, uint64_t length, uint32_t type),           \
	  (extents, offset, length, type))                                                             \
	X(void *, exports_new, (void), ())                                                             \
	X(void, exports_free, (void *exports), (exports))                                              \
	X(size_t, exports_count, (const void *exports), (exports))                                     \
	X(int, add_export, (void *exports, const char *name, const char *description),                 \
	  (exports, name, description))                                                                \
	X(int, use_default_export, (void *exports), (exports))

#define FIELD(result, name, parameters, arguments) result(*name) parameters;
struct table {
	void (*error)(const char *text);
	void (*debug)(const char *text);
	int (*is_debugging)(void);
	FORWARDED(FIELD)
};

static const struct table *table;

// Called once, before any plugin is loaded. The size guards against two lists that differ.
EXPORTED int nbd_nbdkit_set_table(const struct table *functions, size_t size)
{
	if (size != sizeof *functions)
		return -1;
	table = functions;
	return 0;
}

#define FORWARD(result, name, parameters, arguments)                                               \
	EXPORTED result nbdkit_##name parameters { return table->name arguments; }
FORWARDED(FORWARD)

// Callers read errno after a message about it, and %m in the text is about it too.
static void report(void (*tell)(const char *), const char *format, va_list arguments)
{
	int saved = errno;
	char *text = NULL;
	errno = saved;
	if (vasprintf(&text, format, arguments) < 0)
		text = NULL;
	tell(text ? text : format);
	free(text);
	errno = saved;
}

EXPORTED void nbdkit_verror(const char *format, va_list arguments)
{
	report(table->error, format, arguments);
}

EXPORTED void nbdkit_error(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	report(table->error, format, arguments);
	va_end(arguments);
}

EXPORTED void nbdkit_vdebug(const char *format, va_list arguments)
{
	if (table->is_debugging())
		report(table->debug, format, arguments);
}

EXPORTED void nbdkit_debug(const char *format, ...)
{
	va_list arguments;
	if (!table->is_debugging())
		return;
	va_start(arguments, format);
	report(table->debug, format, arguments);
	va_end(arguments);
}

EXPORTED const char *nbdkit_vprintf_intern(const char *format, va_list arguments)
{
	char *text = NULL;
	const char *interned;
	if (vasprintf(&text, format, arguments) < 0) {
		nbdkit_error("vasprintf: %m");
		return NULL;
	}
	interned = table->strdup_intern(text);
	free(text);
	return interned;
}

EXPORTED const char *nbdkit_printf_intern(const char *format, ...)
{
	const char *interned;
	va_list arguments;
	va_start(arguments, format);
	interned = nbdkit_vprintf_intern(format, arguments);
	va_end(arguments);
	return interned;
}

static void hexdump(const char *mark, const unsigned char *data, size_t length, const char *prefix,
                    uint64_t start)
{
	char text[16 * 3 + 1];
	size_t at, i, line;
	for (at = 0; at < length; at += line) {
		line = length - at < 16 ? length - at : 16;
		for (i = 0; i < line; i++)
			sprintf(text + 3 * i, "%02x ", data[at + i]);
		nbdkit_debug("%s%s%08llx: %s", prefix ? prefix : "", mark, (unsigned long long)(start + at),
		             text);
	}
}

EXPORTED void nbdkit_debug_hexdump(const void *data, size_t length, const char *prefix,
                                   uint64_t start)
{
	if (table->is_debugging())
		hexdump("", data, length, prefix, start);
}

EXPORTED void nbdkit_debug_hexdiff(const void *one, const void *other, size_t length,
                                   const char *prefix, uint64_t start)
{
	size_t at, line;
	if (!table->is_debugging())
		return;
	for (at = 0; at < length; at += line) {
		const unsigned char *a = (const unsigned char *)one + at, *b = (const unsigned char *)other + at;
		size_t i;
		line = length - at < 16 ? length - at : 16;
		for (i = 0; i < line && a[i] == b[i]; i++)
			;
		if (i == line)
			continue;
		hexdump("-", a, line, prefix, start + at);
		hexdump("+", b, line, prefix, start + at);
	}
}
