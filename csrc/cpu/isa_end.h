// Ends what isa_begin.h began.
#if defined(__clang__) && (defined(CNNEXT_AVX512) || defined(CNNEXT_AVX2))
#pragma clang attribute pop
#endif
