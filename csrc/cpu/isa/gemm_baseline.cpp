#include "../isa_prelude.h"
#define CNNEXT_ISA baseline
#include "../pointwise.h"
#include "../grouped.h"
