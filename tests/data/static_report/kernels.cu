// What tests/data/static_report holds the machine code of.

// y = 2 x, 16 bytes a thread and turn.
extern "C" __global__ void scale(const float4* __restrict__ x, float4* __restrict__ y, int n) {
#pragma unroll 1
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    const float4 v = x[i];
    y[i] = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w);
  }
}

// Writes columns of a tile of 32 x 32 words, a bank each, and reads them back past a barrier.
extern "C" __global__ void columns(float* y) {
  __shared__ float tile[32 * 32];
  tile[threadIdx.x % 32 * 32 + threadIdx.x / 32] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

// A division, and a branch that half of each warp takes.
extern "C" __global__ void divide(int* y, int n, int d) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i / d % 2 == 0) {
    y[i / d] = 1;
  } else {
    y[n - i % d] = 2;
  }
}
