/* loader.c: what stands in the runtime image where programs look for the dynamic loader (PT_INTERP: LINKER below). The
 * kernel maps it and runs it first. It maps the real loader and jumps there, as if the kernel had done so. In between, if
 * the program is our executable, it lays the pages that every start needs over the kernel's mapping: from one small file
 * in which they lie together, instead of unpacking every block of the image over which they are scattered. Same bytes,
 * same addresses, same protection (initramfs/hot.ts makes the file; docs/decisions/boot.md says what it is good for).
 *
 * Without that file, or with another program, nothing is laid. No libc, no memory but the stack. */
#include <elf.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <stdint.h>
#include <sys/syscall.h>

#define REAL "/usr/lib/loader" /* the real one: initramfs/manifest.ts */
#define HOT "/usr/lib/hot"
#define O_CLOEXEC 02000000
#define PAGE 4096UL
#define TABLE_MAX (16 * PAGE)
#define FAILED 127 /* as a shell says of a program that cannot be run */

struct run {
	uint64_t address, from; /* bytes; from: in the file */
	uint32_t pages, protection;
};
/* initramfs/hot.ts writes the same. */
struct table {
	char magic[8];
	uint64_t entry, runs; /* entry: of the executable that it is for */
	struct run run[];
};

static long sys(long nr, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long ret;
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	asm volatile("syscall"
		     : "=a"(ret)
		     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 asm("x8") = nr, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d,
		      x4 asm("x4") = e, x5 asm("x5") = f;
	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#endif
}

static long need(long result, const char *what)
{
	if (result >= 0 || result < -4095)
		return result;
	long n = 0;
	while (what[n])
		n++;
	sys(SYS_write, 2, (long)what, n, 0, 0, 0);
	for (;;)
		sys(SYS_exit_group, FAILED, 0, 0, 0, 0, 0);
}

static long open(const char *path)
{
	return sys(SYS_openat, AT_FDCWD, (long)path, O_CLOEXEC, 0, 0, 0);
}

static long map(uint64_t address, uint64_t size, long protection, long flags, long fd, uint64_t from)
{
	return sys(SYS_mmap, address, size, protection, MAP_PRIVATE | flags, fd, from);
}

static void lay(uint64_t entry)
{
	long fd = open(HOT);
	if (fd < 0)
		return;
	const struct table *t = (void *)need(map(0, TABLE_MAX, PROT_READ, 0, fd, 0), "loader: " HOT ": no memory\n");
	if (*(uint64_t *)t->magic == *(uint64_t *)"CML hot" && t->entry == entry)
		for (const struct run *r = t->run; r < t->run + t->runs; r++)
			need(map(r->address, r->pages * PAGE, r->protection,
				 MAP_FIXED | (r->protection & PROT_WRITE ? 0 : MAP_POPULATE), fd, r->from),
			     "loader: " HOT ": no memory\n");
	sys(SYS_munmap, (long)t, TABLE_MAX, 0, 0, 0, 0);
	sys(SYS_close, fd, 0, 0, 0, 0, 0);
}

/* Map the real loader as the kernel would (ELF, position-independent); its base. */
static uint64_t load(uint64_t *entry)
{
	static const char failed[] = "loader: cannot load " REAL "\n";
	char head[PAGE / 4];
	long fd = need(open(REAL), failed);
	need(sys(SYS_read, fd, (long)head, sizeof head, 0, 0, 0), failed);
	const Elf64_Ehdr *e = (void *)head;
	const Elf64_Phdr *first = (void *)(head + e->e_phoff), *end = first + e->e_phnum;
	if ((char *)end > head + sizeof head)
		need(-1, failed);
	uint64_t size = 0;
	for (const Elf64_Phdr *p = first; p < end; p++)
		if (p->p_type == PT_LOAD)
			size = p->p_vaddr + p->p_memsz;
	uint64_t base = need(map(0, size, 0, MAP_ANONYMOUS, -1, 0), failed);
	for (const Elf64_Phdr *p = first; p < end; p++) {
		if (p->p_type != PT_LOAD)
			continue;
		long protection = (p->p_flags & PF_R ? PROT_READ : 0) | (p->p_flags & PF_W ? PROT_WRITE : 0) |
				  (p->p_flags & PF_X ? PROT_EXEC : 0);
		uint64_t from = p->p_vaddr & -PAGE, filled = p->p_vaddr + p->p_filesz, to = p->p_vaddr + p->p_memsz;
		need(map(base + from, filled - from, protection, MAP_FIXED, fd, p->p_offset & -PAGE), failed);
		if (!(protection & PROT_WRITE))
			continue;
		uint64_t rest = (filled + PAGE - 1) & -PAGE; /* what the file does not fill is zero */
		for (volatile char *c = (char *)(base + filled); c < (char *)(base + rest); c++)
			*c = 0;
		if (to > rest)
			need(map(base + rest, to - rest, protection, MAP_FIXED | MAP_ANONYMOUS, -1, 0), failed);
	}
	sys(SYS_close, fd, 0, 0, 0, 0, 0);
	*entry = base + e->e_entry;
	return base;
}

/* `stack`: as the kernel left it: count and arguments, environment, auxiliary vector (elf(5)). */
__attribute__((used)) static uint64_t loader(uint64_t *stack)
{
	uint64_t *at = stack + 1 + stack[0] + 1, entry = 0;
	while (*at++)
		;
	Elf64_auxv_t *first = (void *)at;
	for (Elf64_auxv_t *a = first; a->a_type != AT_NULL; a++)
		if (a->a_type == AT_ENTRY)
			lay(a->a_un.a_val);
	uint64_t base = load(&entry);
	for (Elf64_auxv_t *a = first; a->a_type != AT_NULL; a++)
		if (a->a_type == AT_BASE)
			a->a_un.a_val = base;
	return entry;
}

#if defined(__x86_64__)
asm(".globl _start\n_start: mov %rsp, %rdi\nmov %rsp, %rbx\nand $-16, %rsp\ncall loader\nmov %rbx, %rsp\n"
    "xor %edx, %edx\njmp *%rax\n");
#elif defined(__aarch64__)
asm(".globl _start\n_start: mov x0, sp\nmov x19, sp\nbl loader\nmov sp, x19\nmov x16, x0\nmov x0, xzr\nbr x16\n");
#endif
