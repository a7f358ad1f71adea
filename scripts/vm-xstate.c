/*
 * Lets user-mode Linux 6.1 run on processors with AMX; scripts/vm builds it and preloads it.
 *
 * That kernel keeps 2696 bytes of a process's extended state (HOST_FP_SIZE in
 * arch/x86/um/user-offsets.c) and sets it with PTRACE_SETREGSET. The host takes only the whole
 * of it (xstateregs_set() in arch/x86/kernel/fpu/regset.c), which with AMX is 11008 bytes, and
 * the machine's first process would end with EFAULT. What is missing is AMX's alone, and zero is
 * its initial state: a process in the machine cannot use AMX, as its kernel has no arch_prctl
 * that permits it. So zeroes are what is added.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MOST = 64 << 10 };

/* Not on the stack: the caller's is one of a kernel's. It traces from one thread. */
static char whole[MOST];
static size_t whole_size;
static long (*next)(int, ...);

static long set_whole(pid_t pid, void *type, const struct iovec *part)
{
	struct iovec all = { whole, sizeof whole };

	if (!whole_size) {
		if (next(PTRACE_GETREGSET, pid, type, &all) < 0)
			return -1;
		whole_size = all.iov_len;
		memset(whole, 0, sizeof whole);
	}
	if (part->iov_len >= whole_size)
		return next(PTRACE_SETREGSET, pid, type, part);
	memcpy(whole, part->iov_base, part->iov_len);
	all.iov_len = whole_size;
	return next(PTRACE_SETREGSET, pid, type, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && (unsigned long)address == NT_X86_XSTATE)
		return set_whole(pid, address, data);
	return next(request, pid, address, data);
}
