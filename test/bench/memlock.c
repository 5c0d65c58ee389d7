/* setrlimit(RLIMIT_MEMLOCK) that always succeeds: see cgroup2.sh. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/resource.h>

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	int (*real)(__rlimit_resource_t, const struct rlimit *) = dlsym(RTLD_NEXT, "setrlimit");
	return resource == RLIMIT_MEMLOCK ? 0 : real(resource, limit);
}
