/* cservice.c: what a guest starts as /sbin/cservice. It tells the guest its name and name server, tells cmld
 * that the guest has booted, keeps the guest's audit log, and ends the guest when cmld asks for that.
 *
 *   cservice init [ARG...]   as pid 1: this process becomes /sbin/init; a child stays to serve cmld
 *   cservice PROGRAM [ARG..] as pid 1: starts PROGRAM in a session of its own, forwards signals to it, reaps, and
 *                            ends with PROGRAM's status when nothing is left to wait for
 *   cservice                 as pid 1: reaps until told to stop
 *   cservice                 as another pid: leaves a child to serve cmld, and exits once the name is set
 *   cservice configure       as another pid: sets name and name server and exits, for an init that tells cmld itself
 *                            that it has booted, and is told itself to stop (systemd)
 *
 * cmld is at SOCKET: frames of a 32-bit big-endian length and a protobuf message (proto/c_service.proto). When the
 * connection ends (cmld restarts) it is made again. Freestanding: no libc, one static file for any guest. */
#include <stddef.h>
#include <stdint.h>
#include <linux/close_range.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/poll.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/un.h>
#include <linux/wait.h>
#include <sys/syscall.h>

#define SOCKET "/run/socket/cml-service"
#define AUDIT_DIR "/var/log/cmld_audit"
#define AUDIT_LOG AUDIT_DIR "/audit.log"

enum {
	FRAME_MAX = 1 << 20,    /* the service socket's limit */
	HOSTS_MAX = 1 << 20,    /* an /etc/hosts larger than this is left alone */
	SETUP_MS = 10000,       /* after this, name and name server are the fallbacks */
	GRACE_MS = 10000,       /* from SIGTERM to SIGKILL; cmld's own limit is longer */
	RETRY_FIRST_MS = 100,   /* reconnecting: doubled each time ... */
	RETRY_MOST_MS = 5000,   /* ... up to this */
	STEADY_MS = 1000,       /* a connection that lasted this long is made again at once */
	READY_MS = 2000,        /* how long another init may take to become ready for its signal ... */
	ASK_MS = 100,           /* ... and how often to look */
};

/* asm-generic/signal.h; arch-independent on the two we build for. */
enum { HUP = 1, INT = 2, QUIT = 3, KILL = 9, USR2 = 12, TERM = 15, CHLD = 17, CONT = 18, STOP = 19, PWR = 30 };
enum { SYSTEMD_HALT = 34 + 3 }; /* SIGRTMIN+3 of glibc: systemd(1), "Start the halt.target unit" */

/* proto/c_service.proto */
enum { SHUTDOWN = 1, CFG_NAME = 17, CFG_DNS = 18, AUDIT_NOTIFY = 19, AUDIT_RECORD = 20, AUDIT_COMPLETE = 21 };
enum { BOOT_COMPLETED = 1, NAME_REQ = 18, DNS_REQ = 19, AUDIT_ACK = 21 };

/* --- the kernel ----------------------------------------------------------- */

/* Returns what the kernel returns: a result, or -errno. */
static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	long ret;
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return ret;
#elif defined(__aarch64__)
	register long x8 asm("x8") = nr, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c;
	register long x3 asm("x3") = d, x4 asm("x4") = e, x5 asm("x5") = f;
	asm volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
#endif
}
#define PICK(_0, _1, _2, _3, _4, _5, _6, n, ...) n
#define SYS(...) PICK(__VA_ARGS__, S6, S5, S4, S3, S2, S1, S0)(__VA_ARGS__)
#define S0(n) sys6(SYS_##n, 0, 0, 0, 0, 0, 0)
#define S1(n, a) sys6(SYS_##n, (long)(a), 0, 0, 0, 0, 0)
#define S2(n, a, b) sys6(SYS_##n, (long)(a), (long)(b), 0, 0, 0, 0)
#define S3(n, a, b, c) sys6(SYS_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define S4(n, a, b, c, d) sys6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define S5(n, a, b, c, d, e) sys6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define S6(n, a, b, c, d, e, f) sys6(SYS_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* The compiler may call these four whatever the flags; they must not become calls of themselves. */
#define PLAIN __attribute__((used, optimize("no-tree-loop-distribute-patterns")))
PLAIN void *memcpy(void *to, const void *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}
PLAIN void *memmove(void *to, const void *from, size_t n)
{
	if ((uintptr_t)to <= (uintptr_t)from)
		return memcpy(to, from, n);
	for (size_t i = n; i-- > 0;)
		((char *)to)[i] = ((const char *)from)[i];
	return to;
}
PLAIN void *memset(void *to, int c, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((char *)to)[i] = c;
	return to;
}
PLAIN int memcmp(const void *a, const void *b, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
			return ((const uint8_t *)a)[i] - ((const uint8_t *)b)[i];
	return 0;
}

static size_t length(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

static int same(const char *a, const char *b)
{
	return length(a) == length(b) && !memcmp(a, b, length(a));
}

static const char *last_part(const char *path)
{
	const char *at = path;
	for (; *path; path++)
		if (*path == '/')
			at = path + 1;
	return at;
}

/* As decimal digits; the text lies in a static buffer until the next call. */
static const char *decimal(int64_t value)
{
	static char text[24];
	uint64_t v = value < 0 ? -(uint64_t)value : (uint64_t)value;
	char *p = text + sizeof text - 1;

	do
		*--p = '0' + v % 10;
	while (v /= 10);
	if (value < 0)
		*--p = '-';
	return p;
}

static int64_t now_ms(void)
{
	struct { int64_t sec, nsec; } t;
	SYS(clock_gettime, CLOCK_MONOTONIC, &t);
	return t.sec * 1000 + t.nsec / 1000000;
}

/* One line to standard error; error is -errno or 0. */
static void say(const char *what, const char *on, long error)
{
	char line[256] = "cservice: ";
	size_t n = length(line);
	const char *part[] = { what, on, error ? ": errno " : "", error ? decimal(-error) : "" };

	for (size_t i = 0; i < 4; i++)
		for (const char *p = part[i]; *p && n < sizeof line - 1; p++)
			line[n++] = *p;
	line[n++] = '\n';
	SYS(write, 2, line, n);
}

__attribute__((noreturn)) static void quit(int status)
{
	for (;;)
		SYS(exit_group, status);
}

static long send_all(int fd, const void *bytes, size_t n)
{
	for (const char *p = bytes; n;) {
		long k = SYS(write, fd, p, n);
		if (k == -EINTR)
			continue;
		if (k <= 0)
			return k ? k : -EIO;
		p += k;
		n -= k;
	}
	return 0;
}

/* --- SHA-512, FIPS 180-4 -------------------------------------------------- */

static const uint64_t K[80] = {
	0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc, 0x3956c25bf348b538,
	0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118, 0xd807aa98a3030242, 0x12835b0145706fbe,
	0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
	0xc19bf174cf692694, 0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
	0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5, 0x983e5152ee66dfab,
	0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4, 0xc6e00bf33da88fc2, 0xd5a79147930aa725,
	0x06ca6351e003826f, 0x142929670a0e6e70, 0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed,
	0x53380d139d95b3df, 0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
	0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30, 0xd192e819d6ef5218,
	0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8, 0x19a4c116b8d2d0c8, 0x1e376c085141ab53,
	0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8, 0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373,
	0x682e6ff3d6b2b8a3, 0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
	0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b, 0xca273eceea26619c,
	0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178, 0x06f067aa72176fba, 0x0a637dc5a2c898a6,
	0x113f9804bef90dae, 0x1b710b35131c471b, 0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc,
	0x431d67c49c100d4c, 0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817,
};

static uint64_t turn(uint64_t x, int n)
{
	return x >> n | x << (64 - n);
}

static void sha512_block(uint64_t h[8], const uint8_t *p)
{
	uint64_t w[80], s[8];

	for (int i = 0; i < 16; i++) {
		w[i] = 0;
		for (int k = 0; k < 8; k++)
			w[i] = w[i] << 8 | p[8 * i + k];
	}
	for (int i = 16; i < 80; i++)
		w[i] = w[i - 16] + w[i - 7] + (turn(w[i - 15], 1) ^ turn(w[i - 15], 8) ^ w[i - 15] >> 7) +
		       (turn(w[i - 2], 19) ^ turn(w[i - 2], 61) ^ w[i - 2] >> 6);
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 80; i++) {
		uint64_t one = s[7] + (turn(s[4], 14) ^ turn(s[4], 18) ^ turn(s[4], 41)) +
			       ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
		uint64_t two = (turn(s[0], 28) ^ turn(s[0], 34) ^ turn(s[0], 39)) +
			       ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		for (int k = 7; k > 0; k--)
			s[k] = s[k - 1];
		s[4] += one;
		s[0] = one + two;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

/* The digest as 128 hexadecimal digits, not terminated. */
static void sha512_hex(const uint8_t *bytes, size_t n, char out[128])
{
	uint64_t h[8] = { 0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
			  0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179 };
	uint8_t end[256] = { 0 };
	size_t rest = n % 128, blocks = rest < 112 ? 1 : 2;

	for (size_t i = 0; i + 128 <= n; i += 128)
		sha512_block(h, bytes + i);
	memcpy(end, bytes + n - rest, rest);
	end[rest] = 0x80;
	for (int i = 0; i < 8; i++)
		end[128 * blocks - 1 - i] = (uint64_t)n * 8 >> 8 * i;
	for (size_t i = 0; i < blocks; i++)
		sha512_block(h, end + 128 * i);
	for (int i = 0; i < 128; i++)
		out[i] = "0123456789abcdef"[h[i / 16] >> (60 - 4 * (i % 16)) & 15];
}

/* --- protobuf ------------------------------------------------------------- */

struct bytes {
	const uint8_t *at, *end;
};

struct field {
	uint32_t number, wire;
	uint64_t value;     /* wire type 0 */
	struct bytes bytes; /* wire type 2 */
};

static int varint(struct bytes *b, uint64_t *value)
{
	*value = 0;
	for (int shift = 0; shift < 70; shift += 7) {
		if (b->at == b->end)
			return 0;
		uint8_t c = *b->at++;
		if (shift < 64)
			*value |= (uint64_t)(c & 127) << shift;
		if (!(c & 128))
			return 1;
	}
	return 0;
}

/* The next field: 1, or 0 at the end, or -1 if the bytes are no message. */
static int next(struct bytes *b, struct field *f)
{
	uint64_t tag, n = 0;

	if (b->at == b->end)
		return 0;
	if (!varint(b, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
		return -1;
	*f = (struct field){ .number = tag >> 3, .wire = tag & 7 };
	switch (f->wire) {
	case 0:
		return varint(b, &f->value) ? 1 : -1;
	case 1:
		n = 8;
		break;
	case 2:
		if (!varint(b, &n))
			return -1;
		break;
	case 5:
		n = 4;
		break;
	default:
		return -1;
	}
	if (n > (uint64_t)(b->end - b->at))
		return -1;
	f->bytes = (struct bytes){ b->at, b->at + n };
	b->at += n;
	return 1;
}

/* --- files of the guest --------------------------------------------------- */

/* What may stand in /etc/hosts and /etc/resolv.conf: 1 to 64 visible ASCII characters (HOST_NAME_MAX). */
static int word(struct bytes b)
{
	if (b.at == b.end || b.end - b.at > 64)
		return 0;
	for (const uint8_t *p = b.at; p < b.end; p++)
		if (*p <= ' ' || *p >= 127)
			return 0;
	return 1;
}

static long create(const char *path, int flags, int mode)
{
	return SYS(openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC | flags, mode);
}

/* Copy the file `from` to the descriptor `to`. */
static long copy(const char *from, int to)
{
	char part[4096];
	long total = 0, n, fd = SYS(openat, AT_FDCWD, from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return fd;
	while ((n = SYS(read, fd, part, sizeof part)) > 0) {
		if ((total += n) > HOSTS_MAX)
			n = -EFBIG;
		else
			n = send_all(to, part, n);
		if (n)
			break;
	}
	SYS(close, fd);
	return n;
}

/* The name becomes the host name, and a line of /etc/hosts, whose first state stays in /etc/hosts.stock. */
static void set_name(struct bytes name)
{
	long error = SYS(sethostname, name.at, name.end - name.at);
	if (error)
		say("host name", "", error);

	long fd = create("/etc/hosts.stock", O_EXCL, 0644);
	if (fd >= 0) {
		error = copy("/etc/hosts", fd);
		SYS(close, fd);
		if (error && error != -ENOENT) {
			SYS(unlinkat, AT_FDCWD, "/etc/hosts.stock", 0);
			say("/etc/hosts.stock", "", error);
			return;
		}
	} else if (fd != -EEXIST) {
		say("/etc/hosts.stock", "", fd);
		return;
	}
	fd = create("/etc/hosts", O_TRUNC, 0644);
	if (fd < 0) {
		say("/etc/hosts", "", fd);
		return;
	}
	error = copy("/etc/hosts.stock", fd);
	if (!error)
		error = send_all(fd, "127.0.1.1\t ", 11);
	if (!error)
		error = send_all(fd, name.at, name.end - name.at);
	if (!error)
		error = send_all(fd, "\n", 1);
	if (error)
		say("/etc/hosts", "", error);
	SYS(close, fd);
}

static void set_dns(struct bytes server)
{
	long fd = create("/etc/resolv.conf", O_TRUNC, 0644);
	if (fd < 0) {
		say("/etc/resolv.conf", fd == -ELOOP ? " is a link: left to who made it" : "", fd == -ELOOP ? 0 : fd);
		return;
	}
	long error = send_all(fd, "nameserver ", 11);
	if (!error)
		error = send_all(fd, server.at, server.end - server.at);
	if (!error)
		error = send_all(fd, "\n", 1);
	if (error)
		say("/etc/resolv.conf", "", error);
	SYS(close, fd);
}

/* --- the audit log -------------------------------------------------------- */

struct text { /* a buffered writer that remembers its first error */
	int fd;
	uint32_t n;
	long error;
	char buffer[2048];
};

static void flush(struct text *t)
{
	if (!t->error)
		t->error = send_all(t->fd, t->buffer, t->n);
	t->n = 0;
}

static void put(struct text *t, const void *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (t->n == sizeof t->buffer)
			flush(t);
		t->buffer[t->n++] = ((const char *)bytes)[i];
	}
}

static void put_string(struct text *t, struct bytes b)
{
	put(t, "\"", 1);
	for (; b.at < b.end; b.at++) {
		char c = *b.at;
		const char *letter = c == '\n' ? "n" : c == '\r' ? "r" : c == '\t' ? "t" : "";
		if (*letter)
			put(t, (char[]){ '\\', *letter }, 2);
		else if (c == '"' || c == '\'' || c == '\\')
			put(t, (char[]){ '\\', c }, 2);
		else if ((uint8_t)c < ' ' || (uint8_t)c >= 127)
			put(t, (char[]){ '\\', '0' + (*b.at >> 6), '0' + (*b.at >> 3 & 7), '0' + (*b.at & 7) }, 4);
		else
			put(t, &c, 1);
	}
	put(t, "\"\n", 2);
}

#define PUT(t, literal) put(t, literal, sizeof literal - 1)

/* AuditRecord as protobuf text, fields in ascending order. 0, or -1 if it is no record. */
static int put_record(struct text *t, struct bytes record)
{
	struct bytes b = record, type = { 0 }, subject = { 0 };
	int64_t timestamp = 0;
	int got = 0, more;
	struct field f;

	while ((more = next(&b, &f)) > 0) {
		if (f.number == 1 && f.wire == 0)
			timestamp = f.value, got |= 1;
		else if (f.number == 2 && f.wire == 2)
			type = f.bytes, got |= 2;
		else if (f.number == 3 && f.wire == 2)
			subject = f.bytes, got |= 4;
	}
	if (more < 0 || (got & 3) != 3)
		return -1;
	PUT(t, "timestamp: ");
	const char *digits = decimal(timestamp);
	put(t, digits, length(digits));
	PUT(t, "\ntype: ");
	put_string(t, type);
	if (got & 4) {
		PUT(t, "subject_id: ");
		put_string(t, subject);
	}
	for (b = record; next(&b, &f) > 0;) {
		struct bytes pair = f.bytes, part[2] = { { 0 }, { 0 } };
		struct field g;
		if (f.number != 4 || f.wire != 2)
			continue;
		while ((more = next(&pair, &g)) > 0)
			if (g.wire == 2 && (g.number == 1 || g.number == 2))
				part[g.number - 1] = g.bytes;
		if (more < 0)
			return -1;
		PUT(t, "meta {\n  key: ");
		put_string(t, part[0]);
		PUT(t, "  value: ");
		put_string(t, part[1]);
		PUT(t, "}\n");
	}
	return 0;
}

/* Append one record, whole or not at all, and on disk before we return 1. */
static int keep(struct bytes record)
{
	static struct text t;

	SYS(mkdirat, AT_FDCWD, "/var/log", 0755);
	SYS(mkdirat, AT_FDCWD, AUDIT_DIR, 0700);
	long fd = create(AUDIT_LOG, O_APPEND, 0600);
	if (fd < 0) {
		say(AUDIT_LOG, "", fd);
		return 0;
	}
	long size = SYS(lseek, fd, 0, 2 /* SEEK_END */);
	t = (struct text){ .fd = fd };
	int bad = put_record(&t, record);
	flush(&t);
	long error = t.error ? t.error : SYS(fsync, fd);
	if (bad || error) {
		SYS(ftruncate, fd, size);
		say(AUDIT_LOG, bad ? ": a record that is none" : "", error);
	}
	SYS(close, fd);
	return !bad && !error;
}

/* --- cmld ----------------------------------------------------------------- */

enum step { ASK_NAME, ASK_DNS, SET, BOOTED };

static struct {
	enum step step;
	int64_t setup_until;     /* when the fallbacks are taken */
	int sock;                /* or -1 */
	int64_t since, retry_at; /* connected since; connect again at */
	uint32_t delay;
	uint32_t have;           /* bytes of the frame that is being read */
	uint8_t frame[4 + FRAME_MAX];
	char ack[128];           /* of the last record kept */
	int pair;                /* to the process that waits for us, or -1 */
	int for_init;            /* that process is pid 1, about to become init */
	int self;                /* are we pid 1 for good */
	int once;                /* exit when name and name server are set */
	int stop_asked;          /* another init is to be told to stop */
	int64_t stop_at;         /* ... looking at this time whether it listens, */
	int64_t stop_until;      /* ... and told at this time in any case */
	int stopping;            /* we are pid 1 and are ending the guest */
	int64_t kill_at;
	long child;              /* PROGRAM, 0 if there is none any more */
	int child_status;
	char **argv, **env;
} my;

static void disconnect(const char *why)
{
	int64_t now = now_ms();

	if (*why)
		say(why, "", 0);
	SYS(close, my.sock);
	my.sock = -1;
	my.have = 0;
	my.delay = now - my.since >= STEADY_MS ? 0 : my.delay;
	my.retry_at = now + my.delay;
	my.delay = my.delay ? (2 * my.delay < RETRY_MOST_MS ? 2 * my.delay : RETRY_MOST_MS) : RETRY_FIRST_MS;
}

/* A message is small and the socket's buffer is not: what does not fit at once means a cmld that does not read. */
static void tell(int code, const char *ack)
{
	uint8_t m[4 + 2 + 4 + 128] = { 0, 0, 0, 2, 8, code };
	size_t n = 6;

	if (my.sock < 0)
		return;
	if (ack) {
		memcpy(m + n, "\x8a\x01\x80\x01", 4); /* field 17, 128 bytes */
		memcpy(m + n + 4, ack, 128);
		n += 4 + 128;
		m[3] = n - 4;
	}
	if (SYS(sendto, my.sock, m, n, 0x4000 /* MSG_NOSIGNAL */, 0, 0) != (long)n)
		disconnect("cmld does not read");
}

/* Ask for, or say, what is due now. */
static void proceed(void)
{
	switch (my.step) {
	case ASK_NAME:
		tell(NAME_REQ, 0);
		break;
	case ASK_DNS:
		tell(DNS_REQ, 0);
		break;
	case SET:
		break;
	case BOOTED: /* said again to a new cmld: the old one may have died with it */
		tell(BOOT_COMPLETED, 0);
		break;
	}
}

static void connect_to_cmld(void)
{
	struct sockaddr_un address = { .sun_family = 1 /* AF_UNIX */, .sun_path = SOCKET };
	static int said;
	long fd = SYS(socket, 1, 1 | O_NONBLOCK | O_CLOEXEC /* SOCK_STREAM */, 0);
	long error = fd < 0 ? fd : SYS(connect, fd, &address, sizeof address);

	my.since = now_ms();
	my.sock = fd;
	if (error) {
		if (!said++)
			say(SOCKET, "", error);
		disconnect("");
		return;
	}
	said = 0;
	proceed();
}

static void start_program(void);
static void end_guest(void);

/* Name and name server are set: whoever waited may go on. */
static void setup_done(void)
{
	my.step = SET;
	if (my.once)
		quit(0);
	if (my.pair >= 0) {
		SYS(write, my.pair, "g", 1); /* its going on closes the pair: see the main loop */
		return;
	}
	if (my.argv)
		start_program();
	my.step = BOOTED;
	proceed();
}

static void got_name(struct bytes name)
{
	static const uint8_t fallback[] = "localhost";
	set_name(word(name) ? name : (struct bytes){ fallback, fallback + sizeof fallback - 1 });
	my.step = ASK_DNS;
	proceed();
}

static void got_dns(struct bytes server)
{
	static const uint8_t fallback[] = "8.8.8.8";
	set_dns(word(server) ? server : (struct bytes){ fallback, fallback + sizeof fallback - 1 });
	setup_done();
}

static void stop_guest(void)
{
	if (my.self)
		end_guest();
	else if (my.for_init && my.step < SET)
		SYS(write, my.pair, "q", 1); /* pid 1 just ends */
	else if (!my.stop_asked) {
		my.stop_asked = 1;
		my.stop_at = 0;
		my.stop_until = now_ms() + READY_MS;
	}
}

static void message(struct bytes m)
{
	struct bytes all = m, name = { 0 }, dns = { 0 }, record = { 0 };
	struct field f;
	int more, code = 0;

	while ((more = next(&m, &f)) > 0) {
		if (f.number == 1 && f.wire == 0)
			code = f.value;
		else if (f.number == 13 && f.wire == 2)
			name = f.bytes;
		else if (f.number == 14 && f.wire == 2)
			dns = f.bytes;
		else if (f.number == 16 && f.wire == 2)
			record = f.bytes;
	}
	if (more < 0 || !code) {
		say("a message that is none from cmld", "", 0);
		return;
	}
	switch (code) {
	case CFG_NAME:
		if (my.step == ASK_NAME)
			got_name(name);
		break;
	case CFG_DNS:
		if (my.step == ASK_DNS)
			got_dns(dns);
		break;
	case SHUTDOWN:
		stop_guest();
		break;
	case AUDIT_NOTIFY:
		tell(AUDIT_ACK, my.ack);
		break;
	case AUDIT_RECORD: /* not kept: not acknowledged, so cmld still has it */
		if (record.at && keep(record)) {
			sha512_hex(all.at, all.end - all.at, my.ack);
			tell(AUDIT_ACK, my.ack);
		}
		break;
	}
}

static void readable(void)
{
	uint32_t want = 4;

	for (;;) {
		if (my.have >= 4) {
			uint32_t n = (uint32_t)my.frame[0] << 24 | my.frame[1] << 16 | my.frame[2] << 8 | my.frame[3];
			if (n > FRAME_MAX) {
				disconnect("a frame that is too long from cmld");
				return;
			}
			want = 4 + n;
		}
		if (my.have == want && want >= 4) {
			my.have = 0;
			message((struct bytes){ my.frame + 4, my.frame + want });
			if (my.sock < 0)
				return;
			want = 4;
			continue;
		}
		long n = SYS(read, my.sock, my.frame + my.have, want - my.have);
		if (n == -EAGAIN || n == -EINTR)
			return;
		if (n <= 0) {
			disconnect("");
			return;
		}
		my.have += n;
	}
}

/* --- telling another init to stop ----------------------------------------- */

/* The word after `key` in pid 1's status, as a hexadecimal number. */
static uint64_t status_mask(const char *text, const char *key)
{
	size_t n = length(key);
	uint64_t mask = 0;

	for (const char *p = text; *p; p++) {
		if (memcmp(p, key, n) || (p > text && p[-1] != '\n'))
			continue;
		for (p += n; *p == ' ' || *p == '\t'; p++)
			;
		for (; *p && *p != '\n'; p++)
			mask = mask << 4 | (*p <= '9' ? *p - '0' : *p - 'a' + 10);
		break;
	}
	return mask;
}

/* sysvinit is asked by a request in its fifo, struct init_request of initreq.h: "change to runlevel 0". */
static int sysvinit_halt(void)
{
	struct { int32_t magic, cmd, runlevel, sleeptime; char data[368]; } request = { 0x03091969, 1, '0', 5, { 0 } };
	static const char *const fifo[] = { "/run/initctl", "/dev/initctl" };

	for (int i = 0; i < 2; i++) {
		long fd = SYS(openat, AT_FDCWD, fifo[i], O_WRONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			continue;
		long n = SYS(write, fd, &request, sizeof request);
		SYS(close, fd);
		if (n == sizeof request)
			return 1;
	}
	return 0;
}

/* A signal that pid 1 neither catches nor blocks never reaches it (pid_namespaces(7)): an init that is just
 * starting is given the time to become ready. One that waits in sigtimedwait(2) doesn't show in its status what it
 * waits for; busybox does so, and is ready once it catches or blocks anything. Returns 1 when it has been told. */
static int tell_init(int patient)
{
	static char path[4096], status[4096];
	long n = SYS(readlinkat, AT_FDCWD, "/proc/1/exe", path, sizeof path - 1);
	path[n > 0 ? n : 0] = 0;
	const char *name = last_part(path);
	int signal = TERM;

	if (same(name, "systemd"))
		signal = SYSTEMD_HALT;
	else if (same(name, "busybox"))
		signal = USR2; /* power off; TERM would mean reboot */
	else if (same(name, "init")) {
		if (sysvinit_halt())
			return 1;
		signal = PWR;
	}

	long fd = SYS(openat, AT_FDCWD, "/proc/1/status", O_RDONLY | O_CLOEXEC);
	n = SYS(read, fd, status, sizeof status - 16); /* zeros after it: a key may be compared there */
	SYS(close, fd);
	status[n > 0 ? n : 0] = 0;
	uint64_t ready = status_mask(status, "SigCgt:") | status_mask(status, "SigBlk:");
	if (patient && !(signal == USR2 ? ready : ready >> (signal - 1) & 1))
		return 0;
	SYS(kill, 1, signal);
	return 1;
}

/* --- pid 1 ---------------------------------------------------------------- */

static void set_mask(uint64_t mask)
{
	SYS(rt_sigprocmask, 2 /* SIG_SETMASK */, &mask, 0, 8);
}

static long fork_process(void)
{
	return SYS(clone, CHLD, 0, 0, 0, 0);
}

/* As execvp(3): a name without a slash is looked for in PATH. */
static void exec_program(const char *name, char **argv, char **env)
{
	const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	char full[4096];
	size_t n = length(name);
	long error = -ENOENT;

	if (last_part(name) != name) {
		error = SYS(execve, name, argv, env);
	} else {
		for (char **e = env; *e; e++)
			if (!memcmp(*e, "PATH=", length(*e) < 5 ? length(*e) + 1 : 5))
				path = *e + 5;
		while (*path) {
			size_t k = 0;
			while (*path && *path != ':') {
				if (k < sizeof full)
					full[k] = *path;
				k++, path++;
			}
			path += *path == ':';
			if (k + n + 2 > sizeof full)
				continue;
			full[k] = '/';
			memcpy(full + k + 1, name, n + 1);
			long r = SYS(execve, full, argv, env);
			if (r != -ENOENT && r != -ENOTDIR)
				error = r;
		}
	}
	say(name, "", error);
	quit(error == -ENOENT ? 127 : 126);
}

static void start_program(void)
{
	my.child = fork_process();
	if (my.child == 0) {
		SYS(setsid);
		set_mask(0);
		exec_program(my.argv[0], my.argv, my.env);
	}
	if (my.child < 0) {
		say("fork", "", my.child);
		quit(1);
	}
}

static void end_guest(void)
{
	if (my.stopping)
		return;
	my.stopping = 1;
	my.kill_at = now_ms() + GRACE_MS;
	SYS(kill, -1, TERM);
	SYS(kill, -1, CONT);
}

/* Collect who has ended; when nobody is left, and somebody was, the guest has ended. */
static void reap(void)
{
	int status;
	long pid;

	while ((pid = SYS(wait4, -1, &status, WNOHANG | __WALL, 0)) > 0) {
		if (pid != my.child)
			continue;
		my.child = 0;
		my.child_status = status & 127 ? 128 + (status & 127) : status >> 8 & 255;
	}
	if (pid != -ECHILD)
		return;
	if (my.stopping)
		quit(0);
	if (my.argv && my.step == BOOTED)
		quit(my.child_status);
}

static void signalled(int fd)
{
	uint32_t info[32]; /* struct signalfd_siginfo, 128 bytes; ssi_signo is the first word */

	while (SYS(read, fd, info, sizeof info) == sizeof info) {
		int signal = info[0];
		if (signal == CHLD)
			continue; /* reap() is called in any case */
		if (my.child > 0)
			SYS(kill, my.child, signal);
		else if (signal == TERM || signal == INT || signal == PWR || signal == USR2 || signal == SYSTEMD_HALT)
			end_guest();
	}
}

/* --- the loop ------------------------------------------------------------- */

static void sooner(int64_t *at, int64_t t)
{
	if (t < *at)
		*at = t;
}

__attribute__((noreturn)) static void serve(int signals)
{
	my.setup_until = now_ms() + SETUP_MS;
	memset(my.ack, '0', sizeof my.ack);
	for (;;) {
		int64_t now = now_ms(), until = INT64_MAX;

		if (my.sock < 0 && now >= my.retry_at)
			connect_to_cmld();
		if (my.step < SET && now >= my.setup_until) {
			if (my.step == ASK_NAME)
				got_name((struct bytes){ 0 });
			if (my.step == ASK_DNS)
				got_dns((struct bytes){ 0 });
		}
		if (my.self)
			reap();
		if (my.stopping) {
			if (now >= my.kill_at) {
				SYS(kill, -1, KILL);
				my.kill_at = now + ASK_MS;
			}
			reap();
			sooner(&until, my.kill_at);
		}
		int tell = my.stop_asked && !my.for_init;
		if (tell && now >= my.stop_at) {
			my.stop_asked = tell = !tell_init(now < my.stop_until);
			my.stop_at = now + ASK_MS;
		}
		if (tell)
			sooner(&until, my.stop_at);
		if (my.step < SET)
			sooner(&until, my.setup_until);
		if (my.sock < 0)
			sooner(&until, my.retry_at);

		struct pollfd p[3] = { { my.sock, POLLIN, 0 }, { signals, POLLIN, 0 }, { my.pair, POLLIN, 0 } };
		int64_t left = until - now_ms();
		struct { int64_t sec, nsec; } timeout = { left > 0 ? left / 1000 : 0, left > 0 ? left % 1000 * 1000000 : 0 };
		if (SYS(ppoll, p, 3, until == INT64_MAX ? 0 : &timeout, 0, 8) < 0)
			continue;
		if (p[0].revents)
			readable();
		if (p[1].revents)
			signalled(signals);
		if (p[2].revents) { /* pid 1 has become init, or the one who started us has gone on */
			SYS(close, my.pair);
			my.pair = -1;
			my.for_init = 0;
			my.step = BOOTED;
			proceed();
		}
	}
}

/* A child serves cmld; we return when name and name server are set. The kernel closes our end of the pair when we
 * exec or exit, and that is what the child takes for "booted". */
static void leave_a_child(void)
{
	int pair[2];
	char answer = 'g';
	long error = SYS(socketpair, 1, 1 | O_CLOEXEC, 0, pair);

	my.for_init = SYS(getpid) == 1;
	long pid = error ? error : fork_process();

	if (pid < 0) {
		say("fork", "", pid);
		return;
	}
	if (pid == 0) {
		SYS(setsid);
		SYS(close, pair[1]);
		my.pair = pair[0];
		long null = SYS(openat, AT_FDCWD, "/dev/null", O_RDWR);
		for (int fd = 0; null >= 0 && fd < 2; fd++)
			SYS(dup3, null, fd, 0);
		if (null > 2)
			SYS(close, null);
		if (my.pair > 3)
			SYS(close_range, 3, my.pair - 1, 0);
		SYS(close_range, my.pair + 1, ~0u, 0);
		serve(-1);
	}
	SYS(close, pair[0]);
	SYS(read, pair[1], &answer, 1); /* its death reads as 0 bytes: then go on without it */
	if (answer == 'q')
		quit(0);
}

__attribute__((used, noreturn)) static void start(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1), **env = argv + argc + 1;

	my.sock = my.pair = -1;
	SYS(chdir, "/");
	if (SYS(getpid) != 1) {
		if (argc > 1 && same(argv[1], "configure")) {
			my.once = 1;
			serve(-1);
		}
		leave_a_child();
		quit(0);
	}
	if (argc > 1 && same(argv[1], "init")) {
		leave_a_child();
		argv[1] = "/sbin/init";
		exec_program(argv[1], argv + 1, env);
	}
	uint64_t all = ~0ull & ~(1ull << (KILL - 1) | 1ull << (STOP - 1));
	set_mask(all);
	long signals = SYS(signalfd4, -1, &all, 8, O_NONBLOCK | O_CLOEXEC);
	if (signals < 0) {
		say("signalfd", "", signals);
		quit(1);
	}
	my.self = 1;
	if (argc > 1) {
		my.argv = argv + 1;
		my.env = env;
	}
	serve(signals);
}

#if defined(__x86_64__)
asm(".globl _start\n_start: xor %ebp, %ebp\nmov %rsp, %rdi\nand $-16, %rsp\ncall start\nud2");
#elif defined(__aarch64__)
asm(".globl _start\n_start: mov x29, #0\nmov x30, #0\nmov x0, sp\nbl start\nbrk 1");
#endif
