#include "../isa_begin.h"

#include "../depthwise.h"

#include "../isa_end.h"
