# CUDA to C++ for dev/emu/cuda_emu.h, line for line: compilers, sanitizers and debuggers name the lines of the .cu.
#   kernel<T><<<grid, block>>>(x)        emu::launch("kernel<T>", kernel<T>, grid, block)(x)
#   __shared__ float tile[4][N];         a reference of that name to the block's own copy
#   extern __shared__ float tile[];      a pointer of that name to the block's dynamic shared memory
# A launch needs the kernel's name and `<<<` on one line, `>>>(` on one line, and no nested <> before `<<<`.
# cudaLaunchCooperativeKernel and cudaLaunchKernelEx take the kernel without a cast, on the line of that name. A declaration holds one __shared__ variable, on one line,
# and __align__ stands before its type.
s/#include <cuda_[a-z0-9_]*\.h>/#include "emu\/cuda_emu.h"/
s/#include <cooperative_groups\.h>/#include "emu\/cuda_emu.h"/
s/^ *#pragma unroll.*//
s/\([A-Za-z_][A-Za-z0-9_:]*\(<[^<>;=(){}]*>\)\{0,1\}\) *<<</emu::launch("\1", \1, /g
s/>>> *(/)(/g
s/cudaLaunchCooperativeKernel(\([A-Za-z_][A-Za-z0-9_:]*\(<[^<>;=(){}]*>\)\{0,1\}\),/emu::launch_cooperative("\1", \1,/g
s/cudaLaunchKernelEx(\(&[a-z_]*\), \([A-Za-z_][A-Za-z0-9_:]*\(<[^<>;=(){}]*>\)\{0,1\}\)/emu::launch_with("\2", \1, \2/g
s/extern __shared__ \(__align__([0-9]*) \)\{0,1\}\([A-Za-z_][A-Za-z0-9_:<> ]*\) \([A-Za-z_][A-Za-z0-9_]*\)\[\];/\2 *\3 = (\2 *)emu::dynamic_shared_memory();/
s/__shared__ \(__align__([0-9]*) \)\{0,1\}\([A-Za-z_][A-Za-z0-9_:<> ]*\) \([A-Za-z_][A-Za-z0-9_]*\)\(\[[^;]*\]\);/static emu::SharedVariable emu_\3{sizeof(\2\4)}; \2(\&\3)\4 = *(\2(*)\4)emu_\3.of_this_block();/
s/__shared__ \(__align__([0-9]*) \)\{0,1\}\([A-Za-z_][A-Za-z0-9_:<> ]*\) \([A-Za-z_][A-Za-z0-9_]*\);/static emu::SharedVariable emu_\3{sizeof(\2)}; \2 \&\3 = *(\2 *)emu_\3.of_this_block();/
