#include "../isa_prelude.h"
#define CNNEXT_ISA baseline
#include "../fused.h"
