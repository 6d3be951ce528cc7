// Lets user-mode Linux 6.1 run on processors whose extended state (XSAVE area) is larger than the 2,696
// bytes it reserves, which is every one with AMX. Loaded into linux.uml with LD_PRELOAD by ./uml.
//
// UML stores and loads the registers of its guest with PTRACE_GETREGSET and PTRACE_SETREGSET and a buffer of
// fixed size. The host cuts what it returns, but refuses to load less than the whole area (EFAULT), and the
// guest dies at its first instruction: "ptrace set fp regs failed, errno = 14". So what UML loads is laid
// over the whole area of the moment. What UML does not know, the tile registers of AMX, no guest can use: it
// would need ARCH_REQ_XCOMP_PERM, which UML refuses.

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// UML calls ptrace from one thread, on small kernel stacks; this is too large for them.
static uint8_t area[64 * 1024];

static long load_over(pid_t pid, const struct iovec *part)
{
	struct iovec whole = { .iov_base = area, .iov_len = sizeof(area) };
	uintptr_t set = NT_X86_XSTATE;

	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, set, &whole) < 0)
		return -1;
	if (part->iov_len > whole.iov_len) {
		errno = EFAULT;
		return -1;
	}
	memcpy(area, part->iov_base, part->iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, set, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	// The C library's ptrace returns what was peeked, the kernel's stores it.
	long word = 0;
	int peek = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
	long result = syscall(SYS_ptrace, request, pid, address, peek ? &word : data);
	if (peek && result >= 0) {
		errno = 0;
		return word;
	}
	if (result < 0 && errno == EFAULT && request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE)
		return load_over(pid, data);
	return result;
}
