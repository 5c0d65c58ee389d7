/* storm: calls that a container's filter leaves to cmld, as fast as they come, and with arguments that nobody would
 * give. `storm mounts N`: N mounts that fail; says how many microseconds each took. `storm fuzz SEED N`: N calls with
 * arguments by chance. `storm call NAME`: one, to wait for. Static, like attack. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static uint32_t state;

/* mulberry32 */
static uint32_t chance(uint32_t below)
{
	uint32_t t = state += 0x6d2b79f5;

	t = (t ^ t >> 15) * (t | 1);
	t ^= t + (t ^ t >> 7) * (t | 61);
	return (t ^ t >> 14) % below;
}

static const char *const words[] = {
	"tmpfs", "ramfs", "overlay", "proc", "", "/", ".", "..", "/mnt", "/mnt/", "/dev", "/dev/x", "x", "/mnt/a/../b",
	"/proc/self/fd/3", "/proc/self/fd/99", "/proc/self/fd/3/y", "/proc/1/root/dev/z", "/proc/self/cwd", "size=1m",
	"size=99%,mode=777,uid=5", "uid=70000", "uid=-1", "mode=9", "size=\n", "huge=always", "lowerdir=/,upperdir=/mnt",
	"\xff\xfe", "none", "/dev/null", "/dev/shm", "a,b,,c=", "/mnt/\n",
};

static long number(void)
{
	static const long some[] = { 0, 1, -1, 2, 3, 99, -100, 0x1000, 0x7fffffff, 0x80000000, 0x4024700a, 0x40187014 };

	return chance(3) ? some[chance(sizeof some / sizeof *some)] : (long)chance(0xffffffff) << chance(33);
}

static char *page; /* followed by nothing */

/* An address: of a word, of garbage, of the end of what is mapped, of nothing, of the kernel. */
static long address(void)
{
	switch (chance(8)) {
	case 0: return 0;
	case 1: return number();
	case 2: return (long)page + 4096 - chance(20);
	case 3:
		for (int i = 0; i < 512; i++)
			page[i] = chance(256);
		return (long)page + chance(512);
	case 4: return (long)0xffffffff80000000;
	default: return (long)words[chance(sizeof words / sizeof *words)];
	}
}

static long mode(void)
{
	static const int kinds[] = { S_IFCHR, S_IFCHR, S_IFBLK, S_IFIFO, 0, 0170000 };
	return kinds[chance(6)] | chance(010000);
}

static void one(void)
{
	static const long devices[] = { 0x103, 0x105, 0x101, 0x700, 0x0ae5, 0 };
	long device = chance(2) ? devices[chance(6)] : number();

	switch (chance(9)) {
	case 0: syscall(SYS_mount, address(), address(), address(), chance(4) ? chance(32) & ~4 : number(), address()); break;
	case 1: syscall(SYS_mount, "x", address(), words[chance(2)], 0L, address()); break;
#ifdef SYS_mknod
	case 2: syscall(SYS_mknod, address(), mode(), device); break;
#endif
	case 3: syscall(SYS_mknodat, chance(2) ? AT_FDCWD : number(), address(), mode(), device); break;
	case 4: syscall(SYS_sysinfo, address()); break;
	case 5: syscall(SYS_clock_settime, number(), chance(2) ? 0 : number()); break;
	case 6: syscall(SYS_clock_adjtime, number(), chance(2) ? 0 : number()); break;
	case 7: syscall(SYS_ioctl, number(), number(), address()); break;
	case 8: syscall(SYS_finit_module, number(), address(), number()); break;
	}
	umount2("/mnt", MNT_DETACH);
}

int main(int argc, char **argv)
{
	struct timespec from, to;
	long n = argc > 2 ? atol(argv[argc - 1]) : 0;

	if (argc == 3 && !strcmp(argv[1], "mounts")) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (long i = 0; i < n; i++)
			if (!mount("none", "/none", "tmpfs", 0, NULL) || errno != ENOENT)
				return printf("%ld: %s\n", i, strerrorname_np(errno)), 1;
		clock_gettime(CLOCK_MONOTONIC, &to);
		long us = (to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000;
		return printf("%ld us each\n", us / n), 0;
	}
	if (argc == 4 && !strcmp(argv[1], "fuzz")) {
		state = strtoul(argv[2], NULL, 0);
		page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(page + 4096, 4096);
		memset(page, 'a', 4096);
		open("/dev", O_RDONLY); /* 3 */
		for (long i = 0; i < n; i++)
			one();
		return puts("done"), 0;
	}
	return 2;
}
