#include "../isa_prelude.h"
#define CNNEXT_ISA baseline
#include "../grouped.h"
#include "../pointwise.h"
