// What test_team.py compiles with team.cpp and runs under ThreadSanitizer: each mode ends with 0, or
// says what is wrong. `team_program MODE`.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "team.h"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "not so: %s\n", what);
  std::_Exit(1);
}

struct Job {
  std::vector<int> visits;  // plain ints: two threads at one chunk are a race
  int64_t chunk;
};

void visit(int64_t begin, int64_t end, void* context) {
  Job& job = *static_cast<Job*>(context);
  require(begin < end && end - begin <= job.chunk, "a part is at most a chunk");
  for (int64_t i = begin; i < end; ++i) ++job.visits[i];
}

void share_once(int64_t threads, int64_t count, int64_t chunk) {
  Job job{std::vector<int>(count), chunk};
  bertron::share(threads, count, chunk, visit, &job);
  for (const int visits : job.visits) require(visits == 1, "everything is computed once");
}

// Ops of all sizes, one after the other, as a forward has them; now and then a pause, so that the
// helpers sleep.
void many() {
  for (int i = 0; i < 3000; ++i) {
    share_once(1 + i % 5, 1 + i * 7 % 300, 1 + i % 9);
    if (i % 500 == 0) usleep(2000);
  }
  share_once(4, 200000, 1);
}

void callers() {
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t)
    threads.emplace_back([] {
      for (int i = 0; i < 500; ++i) share_once(3, 1 + i % 100, 1 + i % 4);
    });
  for (std::thread& thread : threads) thread.join();
}

void throwing() {
  for (int i = 0; i < 200; ++i) {
    std::atomic<int> begun{0};
    try {
      bertron::share(
          3, 60, 1,
          [](int64_t begin, int64_t, void* context) {
            ++*static_cast<std::atomic<int>*>(context);
            if (begin % 7 == 0) throw std::runtime_error("no memory");
          },
          &begun);
      require(false, "what a body throws arrives");
    } catch (const std::runtime_error& error) {
      require(std::string(error.what()) == "no memory", "it is what was thrown");
    }
    require(begun == 60, "nothing runs any more, and nothing was left out");
    share_once(3, 60, 1);
  }
}

int allowed_cpus() {
  cpu_set_t allowed;
  require(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "the thread's CPUs are known");
  return CPU_COUNT(&allowed);
}

// Helpers may run on every CPU that their caller may, but one.
void placed() {
  struct Seen {
    std::thread::id caller = std::this_thread::get_id();
    int cpus = allowed_cpus();
    std::atomic<int> by_helpers{0};
  } seen;
  for (int i = 0; i < 1000 && seen.by_helpers == 0; ++i)
    bertron::share(
        2, 2, 1,
        [](int64_t, int64_t, void* context) {
          Seen& seen = *static_cast<Seen*>(context);
          if (std::this_thread::get_id() == seen.caller) {
            usleep(1000);  // for the helper to come
          } else {
            ++seen.by_helpers;
            require(allowed_cpus() == std::max(1, seen.cpus - 1), "a helper keeps off its caller");
          }
        },
        &seen);
  require(seen.by_helpers > 0, "helpers help");
}

void forked() {
  share_once(4, 100, 1);
  const pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 100; ++i) share_once(4, 100, 1);
    std::_Exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child computes");
  share_once(4, 100, 1);
}

}  // namespace

int main(int, char** arguments) {
  const std::string mode = arguments[1];
  if (mode == "many") many();
  else if (mode == "callers") callers();
  else if (mode == "throwing") throwing();
  else if (mode == "placed") placed();
  else if (mode == "forked") forked();
  else require(false, "the mode is known");
  return 0;
}
