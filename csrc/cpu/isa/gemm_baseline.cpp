#include "../isa_begin.h"

#include "../grouped.h"
#include "../pointwise.h"

#include "../isa_end.h"
