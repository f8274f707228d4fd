// cp.async: copies to shared memory that a thread starts and waits for.
#pragma once

#include <cstddef>

#include "place.h"

namespace cnnext::emulator {

/// Starts a copy of `bytes`, of zeros if not `valid`. It lands at once or only when it is waited for, at random, since
/// a kernel may rely on neither.
void start_copy(void* shared, const void* global, size_t bytes, bool valid, const Place& place);

/// Closes the group of the copies started since the last call.
void commit_copies();

/// Lands the copies of all groups but the last `pending`.
void wait_copies(int pending);

/// The thread ends: fails if one of its copies was never waited for.
void finish_copies();

/// A launch has failed: forgets what its threads have started.
void abandon_copies();

}  // namespace cnnext::emulator
