/* run.c: the shim. One instruction, "do this system call", and three ways to
 * use it: call() does one here and now; run() clones a child and does a list
 * of them there, ending in execve or exit; poller() is a thread that waits on
 * descriptors and tells the event loop which are ready. survive() lets PID 1
 * outlive a crash of its own runtime.
 *
 * The child executes this file and nothing else. It has a copy of the address
 * space but one thread, so any lock may be held for ever; or it shares the
 * address space and has somebody else's thread-local storage: no libc, no
 * errno, no JavaScript. The poll thread has no thread-local storage: no libc there
 * either. Built freestanding, links against nothing. */
#include <linux/sched.h>
#include <stdint.h>
#include <sys/syscall.h>

struct op {
	uint32_t nr;     /* system call number */
	uint8_t save;    /* 1 + the register that keeps the result; 0: none */
	uint8_t regs;    /* bit i: arg[i] is a register's number, not a value */
	uint16_t allow;  /* an errno that is no failure here, 0: none, 0xffff: any */
	uint64_t arg[6];
	uint64_t want;   /* the one result that counts as success, or 0 */
};

/* Returns what the kernel returns: a result, or -errno. */
static inline long sys(long nr, const uint64_t a[6])
{
#if defined(__x86_64__)
	long ret;
	register long d asm("r10") = a[3], e asm("r8") = a[4], f asm("r9") = a[5];
	asm volatile("syscall" : "=a"(ret)
		     : "a"(nr), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(d), "r"(e), "r"(f)
		     : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long n asm("x8") = nr, r asm("x0") = a[0], b asm("x1") = a[1], c asm("x2") = a[2];
	register long d asm("x3") = a[3], e asm("x4") = a[4], f asm("x5") = a[5];
	asm volatile("svc 0" : "+r"(r) : "r"(n), "r"(b), "r"(c), "r"(d), "r"(e), "r"(f) : "memory");
	return r;
#endif
}

#define SYS(nr, ...) sys(nr, (uint64_t[6]){ __VA_ARGS__ })

__attribute__((noinline)) static void child(const struct op *ops, uint32_t count, int report)
{
	uint64_t reg[16] = { 0 };

	for (uint32_t i = 0; i < count; i++) {
		const struct op *o = &ops[i];
		uint64_t a[6];
		for (int k = 0; k < 6; k++)
			a[k] = o->regs & 1 << k ? reg[o->arg[k] & 15] : o->arg[k];

		long ret = sys(o->nr, a);
		if (o->save)
			reg[(o->save - 1) & 15] = ret;
		if (ret < 0 ? ret == -(long)o->allow || o->allow == 0xffff : !o->want || ret == (long)o->want)
			continue;

		uint32_t failure[2] = { i, ret < 0 ? -ret : 0 };
		SYS(SYS_write, report, (uint64_t)failure, sizeof failure);
		break;
	}
	for (;;)
		SYS(SYS_exit_group, 127);
}

long call(const struct op *o)
{
	return sys(o->nr, o->arg);
}

/* clone3(2) of a child that starts child() on a stack of its own, in c. */
static long clone_on_stack(const struct clone_args *c, const struct op *ops, uint32_t count, int32_t report)
{
#if defined(__x86_64__)
	register long ret asm("rax") = SYS_clone3;
	register const struct op *o asm("r8") = ops;
	register uint64_t n asm("r9") = count;
	register int64_t r asm("r10") = report;
	asm volatile("syscall\n"
		     "test %%rax, %%rax\n"
		     "jnz 1f\n"
		     "xor %%ebp, %%ebp\n"
		     "mov %%r8, %%rdi\n"
		     "mov %%r9, %%rsi\n"
		     "mov %%r10, %%rdx\n"
		     "call *%%rbx\n"
		     "ud2\n"
		     "1:" : "+r"(ret) : "D"(c), "S"(sizeof *c), "b"(child), "r"(o), "r"(n), "r"(r)
		     : "rcx", "r11", "memory", "cc");
	return ret;
#elif defined(__aarch64__)
	register long x8 asm("x8") = SYS_clone3, x0 asm("x0") = (long)c, x1 asm("x1") = sizeof *c;
	register const struct op *x2 asm("x2") = ops;
	register uint64_t x3 asm("x3") = count;
	register int64_t x4 asm("x4") = report;
	register void *x5 asm("x5") = child;
	asm volatile("svc 0\n"
		     "cbnz x0, 1f\n"
		     "mov x29, xzr\n"
		     "mov x0, x2\n"
		     "mov x1, x3\n"
		     "mov x2, x4\n"
		     "blr x5\n"
		     "brk 1\n"
		     "1:" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "x30", "memory");
	return x0;
#endif
}

/* What setresuid(2) takes from who is root: linux/capability.h, linux/prctl.h. */
struct own {
	uint32_t caps[6];
	int32_t death;
	long dumpable;
};
static const uint32_t caps_of_us[2] = { 0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0 };
enum { PR_SET_PDEATHSIG = 1, PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE };

static long be_again(const struct own *mine)
{
	long failed = SYS(SYS_setresuid, -1, 0, -1);
	if (failed == 0)
		failed = SYS(SYS_capset, (uint64_t)caps_of_us, (uint64_t)mine->caps);
	SYS(SYS_prctl, PR_SET_PDEATHSIG, mine->death);
	if (mine->dumpable == 1)
		SYS(SYS_prctl, PR_SET_DUMPABLE, 1);
	return failed;
}

/* Be somebody else with all of our rights. */
static long become(uint32_t uid, struct own *mine)
{
	mine->dumpable = SYS(SYS_prctl, PR_GET_DUMPABLE);
	long failed = SYS(SYS_prctl, PR_GET_PDEATHSIG, (uint64_t)&mine->death);
	if (failed == 0)
		failed = SYS(SYS_capget, (uint64_t)caps_of_us, (uint64_t)mine->caps);
	if (failed == 0)
		failed = SYS(SYS_setresuid, -1, uid, -1);
	if (failed == 0 && (failed = SYS(SYS_capset, (uint64_t)caps_of_us, (uint64_t)mine->caps)) < 0)
		be_again(mine);
	return failed;
}

/* Returns the child's pid, or -errno; *pidfd receives a pidfd. All signals are
 * blocked from before the clone; the parent's mask comes back here, the
 * child's first op must set its own if it is to have one.
 *
 * stack: for a child that shares our memory (CLONE_VM) and goes on beside us;
 * 0: it has a copy, or we stand still meanwhile (CLONE_VFORK).
 *
 * pidns >= 0: a pidfd, the child is born in that process' pid namespace; home
 * is a pidfd of ourselves. A process enters a pid namespace only by birth, and
 * which one is a property of the thread that clones: it is changed and changed
 * back here, where no other code of this thread runs in between.
 *
 * owner: whose the child's new user namespace is, 0: ours. The same holds for
 * the effective uid of this thread; all that hangs on it otherwise stays. */
long run(const struct op *ops, uint32_t count, uint64_t flags, int32_t cgroup, int32_t report, int32_t *pidfd,
	 int32_t exit_signal, int32_t pidns, int32_t home, uint64_t stack, uint64_t stack_size, uint32_t owner)
{
	uint64_t all = ~0ull, old = 0;
	struct own mine;
	struct clone_args c = { .flags = flags | CLONE_PIDFD, .pidfd = (uint64_t)pidfd, .exit_signal = exit_signal };

	if (stack) {
		c.stack = stack;
		c.stack_size = ((stack + stack_size) & ~15ull) - stack;
	}
	if (cgroup >= 0) {
		c.flags |= CLONE_INTO_CGROUP;
		c.cgroup = cgroup;
	}
	SYS(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, (uint64_t)&all, (uint64_t)&old, 8);
	long pid = pidns < 0 ? 0 : SYS(SYS_setns, pidns, CLONE_NEWPID);
	if (pid == 0 && owner)
		pid = become(owner, &mine);
	if (pid == 0) {
		pid = stack ? clone_on_stack(&c, ops, count, report) : SYS(SYS_clone3, (uint64_t)&c, sizeof c);
		if (pid == 0)
			child(ops, count, report);
		if (owner && be_again(&mine) < 0)
			for (;;) /* or we would go on as somebody else */
				SYS(SYS_exit_group, 127);
	}
	if (pidns >= 0 && SYS(SYS_setns, home, CLONE_NEWPID) < 0)
		for (;;) /* or every later child would be a container's */
			SYS(SYS_exit_group, 127);
	SYS(SYS_rt_sigprocmask, 2, (uint64_t)&old, 0, 8);
	return pid;
}

/* --- the poll thread ------------------------------------------------------ */

struct event { /* epoll_event(2): packed on x86-64 only */
	uint32_t events;
	uint64_t data;
}
#if defined(__x86_64__)
__attribute__((packed))
#endif
;

struct wake { /* one record to the event loop */
	uint32_t events;
	uint32_t pad;
	uint64_t data;
};

struct poll_args {
	int32_t epoll, sock;
};

static void poll_loop(struct poll_args a)
{
	struct event e[64];
	struct wake w[64];

	for (;;) {
		long n = SYS(SYS_epoll_pwait, a.epoll, (uint64_t)e, 64, -1, 0, 8);
		if (n < 0)
			continue; /* EINTR: every signal is blocked here, but ptrace stops */
		for (long i = 0; i < n; i++)
			w[i] = (struct wake){ .events = e[i].events, .data = e[i].data };
		char *p = (char *)w;
		for (long left = n * (long)sizeof *w; left > 0;) {
			long k = SYS(SYS_write, a.sock, (uint64_t)p, left);
			if (k == -32 /* EPIPE */ || k == -9 /* EBADF */)
				SYS(SYS_exit, 0);
			if (k > 0)
				p += k, left -= k;
		}
	}
}

/* clone(2) with a stack of its own; the new thread never returns. */
#if defined(__x86_64__)
__attribute__((naked, noinline)) static long spawn(uint64_t flags, void *stack, void (*fn)(struct poll_args), uint64_t arg)
{
	asm volatile("mov $56, %%eax\n" /* SYS_clone(flags, stack) */
		     "mov %%rdx, %%r12\n"
		     "mov %%rcx, %%r13\n"
		     "xor %%edx, %%edx\n"
		     "xor %%r10d, %%r10d\n"
		     "xor %%r8d, %%r8d\n"
		     "syscall\n"
		     "test %%rax, %%rax\n"
		     "jz 1f\n"
		     "ret\n"
		     "1: xor %%ebp, %%ebp\n"
		     "mov %%r13, %%rdi\n"
		     "call *%%r12\n"
		     "ud2\n" ::: "memory");
}
/* r12 and r13 are the caller's: save them around the naked body. */
static long spawn_thread(uint64_t flags, void *stack, void (*fn)(struct poll_args), uint64_t arg)
{
	long ret;
	asm volatile("call *%[f]" : "=a"(ret)
		     : [f] "r"(spawn), "D"(flags), "S"(stack), "d"(fn), "c"(arg)
		     : "r8", "r10", "r11", "r12", "r13", "memory", "cc");
	return ret;
}
#elif defined(__aarch64__)
static long spawn_thread(uint64_t flags, void *stack, void (*fn)(struct poll_args), uint64_t arg)
{
	register long x8 asm("x8") = SYS_clone, x0 asm("x0") = flags, x1 asm("x1") = (long)stack;
	register long x2 asm("x2") = 0, x3 asm("x3") = 0, x4 asm("x4") = 0;
	register void *x5 asm("x5") = fn;
	register uint64_t x6 asm("x6") = arg;
	asm volatile("svc 0\n"
		     "cbnz x0, 1f\n"
		     "mov x29, xzr\n"
		     "mov x0, x6\n"
		     "blr x5\n"
		     "brk 1\n"
		     "1:" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5), "r"(x6) : "x30", "memory");
	return x0;
}
#endif

/* Start the poll thread: for every event of `epoll` one record to `sock`. Returns its tid or -errno. */
long poller(int32_t epoll, int32_t sock)
{
	uint64_t all = ~0ull, old = 0, size = 16384;
	long stack = SYS(SYS_mmap, 0, size, 3 /* RW */, 0x20022 /* PRIVATE|ANONYMOUS|STACK */, -1ull, 0);
	union { struct poll_args a; uint64_t w; } u = { .a = { epoll, sock } };

	if (stack < 0 && stack > -4096)
		return stack;
	SYS(SYS_rt_sigprocmask, 2, (uint64_t)&all, (uint64_t)&old, 8);
	long tid = spawn_thread(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
				(void *)(stack + size), poll_loop, u.w);
	SYS(SYS_rt_sigprocmask, 2, (uint64_t)&old, 0, 8);
	return tid;
}

/* --- PID 1 outlives its runtime ------------------------------------------- */

static const char *const *again_argv, *const *again_env;
static char again_path[256];
static char again_note[128];
static uint32_t again_note_len;

static void crashed(int sig)
{
	uint64_t none = 0;
	char line[160];
	uint32_t n = 0;

	for (; n < again_note_len; n++)
		line[n] = again_note[n];
	line[n++] = '0' + sig / 10;
	line[n++] = '0' + sig % 10;
	line[n++] = '\n';
	SYS(SYS_write, 2, (uint64_t)line, n);
	SYS(SYS_rt_sigprocmask, 2, (uint64_t)&none, 0, 8);
	SYS(SYS_execve, (uint64_t)again_path, (uint64_t)again_argv, (uint64_t)again_env);
	for (;;)
		SYS(SYS_exit_group, 127);
}

#if defined(__x86_64__)
__attribute__((naked)) static void restorer(void)
{
	asm volatile("mov $15, %%eax\nsyscall\n" :::); /* SYS_rt_sigreturn */
}
#endif

/* On a fatal signal write note and the signal's number to standard error and
 * execve(path, argv, env): same pid, same children, descriptors without
 * CLOEXEC kept. argv and env must stay allocated for ever. Call it from every
 * thread's point of view once: handlers are process-wide, the alternate stack
 * is the calling thread's. Returns 0 or -errno. */
long survive(const char *path, const char *const *argv, const char *const *env, const char *note)
{
	static const int fatal[] = { 4, 5, 6, 7, 8, 11, 31 }; /* ILL TRAP ABRT BUS FPE SEGV SYS */
	struct { void (*fn)(int); uint64_t flags; void (*restorer)(void); uint64_t mask; } action = {
		.fn = crashed, .flags = 0x08000000 /* SA_ONSTACK */ | 0x40000000 /* SA_NODEFER */, .mask = ~0ull,
	};
	struct { uint64_t sp; int32_t flags; uint64_t size; } stack = { .size = 16384 };

	for (uint32_t i = 0; i < sizeof again_path - 1 && path[i]; i++)
		again_path[i] = path[i];
	for (again_note_len = 0; again_note_len < sizeof again_note && note[again_note_len]; again_note_len++)
		again_note[again_note_len] = note[again_note_len];
	again_argv = argv;
	again_env = env;
#if defined(__x86_64__)
	action.flags |= 0x04000000; /* SA_RESTORER */
	action.restorer = restorer;
#endif
	long p = SYS(SYS_mmap, 0, stack.size, 3, 0x22, -1ull, 0);
	if (p < 0 && p > -4096)
		return p;
	stack.sp = p;
	long r = SYS(SYS_sigaltstack, (uint64_t)&stack, 0);
	for (uint32_t i = 0; !r && i < sizeof fatal / sizeof *fatal; i++)
		r = SYS(SYS_rt_sigaction, fatal[i], (uint64_t)&action, 0, 8);
	return r;
}
