/* stage0.c: the ramdisk's /init. It prepares the ground for PID 1: mounts
 * /proc, /sys and /dev, opens the console, mounts the runtime image (a
 * squashfs file beside it in the ramdisk, through a loop device), makes that
 * read-only image the root and executes /usr/sbin/init there.
 *
 * While PID 1's runtime starts, which takes a second on a small machine,
 * children load the kernel modules that every boot needs (FIRST below), and
 * tell PID 1 through a pipe what is done. It is an errand, no more: PID 1 loads
 * itself what is missing when the pipe ends.
 *
 * PID 1's environment is written here and nowhere else: what the kernel hands
 * over from its command line ends in this program. No libc, no memory but the
 * stack. */
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <stdint.h>
#include <sys/syscall.h>

#define AT_FDCWD -100
#define O_RDWR 2
#define O_CLOEXEC 02000000
#define SIGCHLD 17
#define FIRST "/usr/lib/modules/first" /* a path in each line; an empty line ends a part */
#define FIRST_MAX 8192
#define LATER 5 /* niceness that each part has more than the one before: its share is a third of that one's */
#define FIRST_FD 3 /* PID 1's end of the pipe, as its environment says */
#define HOT "/root/usr/lib/hot" /* where loader.c looks */
#define CONSOLE_WAIT_S 10 /* time to read why, before the machine starts again */

static long sys(long nr, long a, long b, long c, long d, long e)
{
#if defined(__x86_64__)
	long ret;
	register long r10 asm("r10") = d, r8 asm("r8") = e;
	asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 asm("x8") = nr, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c, x3 asm("x3") = d,
		      x4 asm("x4") = e;
	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
#endif
}

static void say(const char *text)
{
	long n = 0;
	while (text[n])
		n++;
	sys(SYS_write, 2, (long)text, n, 0, 0);
}

/* Without what failed there is no system: say it, wait, start again. */
static void need(long result, const char *what)
{
	if (result >= 0)
		return;
	char number[] = "000\n";
	for (long i = 2, n = -result; i >= 0; i--, n /= 10)
		number[i] = '0' + n % 10;
	say("stage0: ");
	say(what);
	say(": errno ");
	say(number);
	long delay[2] = { CONSOLE_WAIT_S, 0 };
	sys(SYS_nanosleep, (long)delay, 0, 0, 0, 0);
	for (;;)
		sys(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, 0, 0);
}

static long open(const char *path, long flags)
{
	return sys(SYS_openat, AT_FDCWD, (long)path, flags, 0, 0);
}

static long mount(const char *from, const char *to, const char *type, long flags)
{
	return sys(SYS_mount, (long)from, (long)to, (long)type, flags, 0);
}

/* A kernel that has it built in needs no file. */
static void module(const char *path)
{
	long fd = open(path, O_CLOEXEC);
	if (fd == -2 /* ENOENT */)
		return;
	need(fd, path);
	long r = sys(SYS_finit_module, fd, (long)"", 0, 0, 0);
	need(r == -17 /* EEXIST */ ? 0 : r, path);
	sys(SYS_close, fd, 0, 0, 0, 0);
}

/* Load the files that are named in each line up to `end`, then say which part that was. What is refused is asked for
 * again by PID 1, which says why. */
static void errand(char *line, char *end, long part, long done)
{
	/* The first is what most waits for. */
	sys(SYS_setpriority, 0, 0, part * LATER, 0, 0);
	for (char *at = line; at < end; at++) {
		if (*at != '\n')
			continue;
		*at = 0;
		long fd = open(line, O_CLOEXEC);
		if (fd >= 0) {
			sys(SYS_finit_module, fd, (long)"async_probe", 0, 0, 0);
			sys(SYS_close, fd, 0, 0, 0, 0);
		}
		line = at + 1;
	}
	char name = '0' + part;
	sys(SYS_write, done, (long)&name, 1, 0, 0);
	for (;;)
		sys(SYS_exit_group, 0, 0, 0, 0, 0);
}

/* A child for each part of FIRST, so that every processor has something to do. True if PID 1 has its end of the pipe. */
static long send(void)
{
	static char list[FIRST_MAX];
	int ends[2];
	long file = open(FIRST, O_CLOEXEC), size = 0;

	for (long n; size < FIRST_MAX && (n = sys(SYS_read, file, (long)list + size, FIRST_MAX - size, 0, 0)) > 0;)
		size += n;
	sys(SYS_close, file, 0, 0, 0, 0);
	if (sys(SYS_pipe2, (long)ends, 0, 0, 0, 0) < 0)
		return 0;
	long part = 0;
	for (char *from = list, *at = list; at < list + size; at++) {
		if (*at != '\n' || (at > list && at[-1] != '\n'))
			continue;
		if (sys(SYS_clone, SIGCHLD, 0, 0, 0, 0) == 0) {
			sys(SYS_close, ends[0], 0, 0, 0, 0);
			errand(from, at, part, ends[1]);
		}
		part++;
		from = at + 1;
	}
	sys(SYS_close, ends[1], 0, 0, 0, 0);
	if (ends[0] == FIRST_FD)
		return 1;
	sys(SYS_close, ends[0], 0, 0, 0, 0);
	return 0;
}

__attribute__((used)) static void stage0(void)
{
	/* On any other machine this program does nothing. */
	if (sys(SYS_getpid, 0, 0, 0, 0, 0) != 1)
		sys(SYS_exit_group, 1, 0, 0, 0, 0);

	long dev = mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC);
	long console = open("/dev/console", O_RDWR);
	for (long fd = 0; console >= 0 && fd < 3; fd++)
		if (fd != console)
			sys(SYS_dup3, console, fd, 0, 0, 0);
	if (console > 2)
		sys(SYS_close, console, 0, 0, 0, 0);
	need(dev, "mount /dev");
	need(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC), "mount /proc");
	need(mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC), "mount /sys");
	module("/loop.ko");
	module("/squashfs.ko");

	long image = open("/runtime.squashfs", O_CLOEXEC);
	need(image, "/runtime.squashfs");
	long loop = open("/dev/loop0", O_CLOEXEC);
	need(loop, "/dev/loop0");
	static struct loop_config config; /* zeroed by the loader: there is no memset here */
	config.fd = image;
	config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
	need(sys(SYS_ioctl, loop, LOOP_CONFIGURE, (long)&config, 0, 0), "attach /runtime.squashfs to /dev/loop0");
	/* A page that is missing brings its whole compressed block anyway: what lies around that would be unpacked in vain. */
	sys(SYS_ioctl, loop, BLKRASET, 0, 0, 0);
	need(mount("/dev/loop0", "/root", "squashfs", MS_RDONLY | MS_NOSUID | MS_NODEV), "mount /runtime.squashfs");
	sys(SYS_close, loop, 0, 0, 0, 0);
	sys(SYS_close, image, 0, 0, 0, 0);

	/* The pages that every start needs, in the ramdisk itself: mapped from where they lie, not copied. Absent: none are laid. */
	if (mount("/hot", HOT, 0, MS_BIND) == 0)
		need(mount(0, HOT, 0, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV), HOT);

	need(mount("/dev", "/root/dev", 0, MS_MOVE), "move /dev");
	need(mount("/proc", "/root/proc", 0, MS_MOVE), "move /proc");
	need(mount("/sys", "/root/sys", 0, MS_MOVE), "move /sys");
	/* The image becomes a root that pivot_root(2) can leave again: the ramdisk itself never could. */
	need(sys(SYS_chdir, (long)"/root", 0, 0, 0, 0), "/root");
	need(mount(".", "/", 0, MS_MOVE), "move /root");
	need(sys(SYS_chroot, (long)".", 0, 0, 0, 0), "chroot");
	need(sys(SYS_chdir, (long)"/", 0, 0, 0, 0), "/");

	const char *argv[] = { "init", 0 };
	/* The runtime's settings: docs/decisions/runtime-settings.md. */
	const char *env[] = { "PATH=/usr/sbin:/usr/bin", "HOME=/run", "LC_ALL=C.UTF-8", "TZ=UTC",
			      "BUN_JSC_useDFGJIT=0", "BUN_JSC_useConcurrentJIT=0", "BUN_JSC_forceRAMSize=67108864",
			      send() ? "CML_FIRST_MODULES=3" : 0, 0 };
	need(sys(SYS_execve, (long)"/usr/sbin/init", (long)argv, (long)env, 0, 0), "/usr/sbin/init");
}

#if defined(__x86_64__)
asm(".globl _start\n_start: xor %ebp, %ebp\nand $-16, %rsp\ncall stage0\nud2\n");
#elif defined(__aarch64__)
asm(".globl _start\n_start: mov x29, xzr\nbl stage0\nbrk 1\n");
#endif
