#include "../isa_begin.h"

#include "../fused.h"

#include "../isa_end.h"
