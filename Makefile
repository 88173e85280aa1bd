# make                     the trainers, the sampler, and the two programs that prepare music
# make train_gpt_music     the trainer, and the sampler beside it; DEVICE=cpu|cuda|emu forces one
# make plain               both models in their plainest form, small programs to read first
# make test                all checks, a few minutes; make test-long: the slow ones too
# make check T=midi        the tests of one subject, with all that they print
# make bench               the trainers' speed on this machine
# make compare             the CUDA trainers against the CPU reference, tensor by tensor
# make paper               the published comparison: both models trained, evaluated and sampled, DATA=a MIDI folder
# make help                these lines
# CC=clang, OPENMP=no (one thread) and CFLAGS=... do what one expects.

# -O3 -march=native: the matrix products use the vectors of this machine (dev/cpu/matmul.h).
# -ffp-contract=fast: multiply-adds, also where -std would forbid them. Never -ffast-math: NaN and infinity must work.
CFLAGS = -O3 $(NATIVE)
override CFLAGS += -std=gnu11 -ffp-contract=fast -fno-math-errno -Wall -Wextra
LDLIBS = -lm
NATIVE := $(shell $(CC) -march=native -E -x c /dev/null >/dev/null 2>&1 && echo -march=native)

# OpenMP, unless the compiler cannot or OPENMP=no; without it pragmas are just comments.
ifndef OPENMP
OPENMP := $(shell probe=$$(mktemp) && echo 'int main(void) { return 0; }' | \
	$(CC) -fopenmp -x c - -o $$probe 2>/dev/null && echo yes; rm -f $$probe)
endif
PARALLEL := $(if $(filter yes,$(OPENMP)),-fopenmp,-Wno-unknown-pragmas)

# DEVICE: cuda where there are nvcc and a GPU, else cpu; emu runs the CUDA source on the CPU, for learning and debugging.
NVCC := $(shell command -v nvcc 2>/dev/null)
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
DEVICE ?= $(if $(and $(NVCC),$(GPU)),cuda,cpu)
ifeq ($(filter cuda cpu emu,$(DEVICE)),)
$(error DEVICE=$(DEVICE) is unknown; it can be cuda, cpu or emu)
endif
WHY := $(if $(NVCC),$(if $(GPU),nvcc and a GPU are here,nvcc is here but no GPU),there is no nvcc)
ARCH = sm_$(or $(GPU),80)

TRAINERS = train_gpt_music train_lstm_music
PREPARE = data_prep/prepare_music data_prep/compose_music

all: $(TRAINERS) sample_music

# What a program was made of is written to build/dep by the compiler, and read at the end of this file: a changed header
# makes anew what includes it, and nothing else.
DEPENDENCIES = -MMD -MP -MT $@ -MF build/dep/$(subst /,-,$@).d
INCLUDES = -I. -Idev
COMPILE = $(CC) $(CFLAGS) $(PARALLEL) $(INCLUDES) $(DEPENDENCIES)

# Changes only when the compiler or its flags do, so that everything is built again then.
build/flags: FORCE
	@mkdir -p build/dep
	@echo '$(CC) $(CFLAGS) $(PARALLEL)' | cmp -s - $@ || echo '$(CC) $(CFLAGS) $(PARALLEL)' > $@
FORCE:

# ---- programs

THREADS = $(if $(filter yes,$(OPENMP)),all cores,ONE THREAD$(if $(OPENMP),: OPENMP=$(OPENMP),: the compiler has no OpenMP))

ifeq ($(DEVICE),cpu)
$(TRAINERS): %: dev/%.c build/flags | $(PREPARE) sample_music
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)
	@echo "$@: built for the CPU ($(WHY)), $(THREADS)"
else ifeq ($(DEVICE),cuda)
$(TRAINERS): %: %.cu build/flags | $(PREPARE) sample_music
	nvcc -O3 -std=c++17 -arch=$(ARCH) -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas $(INCLUDES) $(DEPENDENCIES) -o $@ $<
	@echo "$@: built for the GPU, $(ARCH) ($(WHY))"
else
$(TRAINERS): %: build/%_emu | $(PREPARE) sample_music
	cp $< $@
	@echo "$@: built for the emulator, DEVICE=emu: the CUDA source on the CPU, slowly"
endif

build/%_cpu: dev/%.c build/flags
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/%_cpu_sanitized: dev/%.c build/flags
	$(COMPILE) $(SANITIZE) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/%_cpu_narrow: private NATIVE = # the narrowest vectors that the compiler assumes
build/%_cpu_narrow: dev/%.c build/flags
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)

sample_music: sample_music.c build/player_page.h build/flags
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)

# The page of sample_music -o song.html, as a string of C.
build/player_page.h: dev/sample/player.html
	@mkdir -p $(@D)
	@{ echo 'static const char player_page[] ='; sed 's/[\\"?]/\\&/g; s/.*/    "&\\n"/' $<; echo '    ;'; } >$@

PLAIN = dev/plain/plain_gpt dev/plain/plain_lstm
plain: $(PLAIN) $(PREPARE)

$(PLAIN) $(PREPARE) dev/tools/compare_tensors dev/tools/paper: %: %.c build/flags
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)

# ---- the CUDA sources on the CPU (dev/emu/cuda_emu.h): as C++ in build/emu, which is searched before the checkout

CXX = $(if $(findstring clang,$(CC)),clang++,g++)
EMU_COMPILE = $(CXX) -std=c++17 -ffp-contract=fast -fno-math-errno -Wall -Wextra -Ibuild/emu/dev $(INCLUDES) $(DEPENDENCIES)
EMU_HEADERS = $(patsubst %,build/emu/%,$(wildcard dev/cuda/*.cuh)) build/flags
EMU_SANITIZE = -O1 -g $(PARALLEL) -fsanitize=address,undefined -fno-sanitize-recover=all

build/emu/%: % dev/emu/cuda2cpp.sed
	@mkdir -p $(@D)
	@{ echo '#line 1 "$<"'; sed -f dev/emu/cuda2cpp.sed $<; } >$@
build/%_emu: build/emu/%.cu $(EMU_HEADERS)
	$(EMU_COMPILE) -O2 $(NATIVE) $(PARALLEL) $(LDFLAGS) -o $@ -x c++ $< $(LDLIBS)
build/%_emu_sanitized: build/emu/%.cu $(EMU_HEADERS)
	$(EMU_COMPILE) $(EMU_SANITIZE) $(LDFLAGS) -o $@ -x c++ $< $(LDLIBS)
build/%_emu_race: build/emu/%.cu dev/emu/cuda_emu_race.cpp $(EMU_HEADERS)
	$(EMU_COMPILE) -O1 -g -Wno-unknown-pragmas -fsanitize=thread -c -o $@.o -x c++ $<
	$(CXX) -std=c++17 -Wall -Wextra $(INCLUDES) -O2 $(LDFLAGS) -o $@ $@.o dev/emu/cuda_emu_race.cpp $(LDLIBS)
.PRECIOUS: build/emu/%

# ---- tools

bench: $(TRAINERS)
	./train_gpt_music --bench 20
	./train_lstm_music --bench 20

# DATA=folder and the other variables that it takes stand at the head of dev/tools/paper.sh.
paper: $(TRAINERS) sample_music $(PREPARE) dev/tools/paper
	@dev/tools/paper.sh

# The CUDA trainers against the CPU reference, number by number: on a GPU in full size, else through the emulator.
ON_GPU = $(filter cuda,$(DEVICE))
compare: $(TRAINERS:%=build/%_cpu) $(PREPARE) dev/tools/compare_tensors $(if $(ON_GPU),$(TRAINERS),$(TRAINERS:%=build/%_emu))
	dev/tools/compare.sh build/train_gpt_music_cpu \
		$(if $(ON_GPU),./train_gpt_music,build/train_gpt_music_emu --layers 2 --window 64 --batch 2)
	dev/tools/compare.sh build/train_lstm_music_cpu \
		$(if $(ON_GPU),./train_lstm_music,build/train_lstm_music_emu --window 16 --batch 2)

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

# ---- tests: test/test_NAME.c or test/test_NAME.sh, each ending in a line `NAME: N passed, N failed`

SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
PROGRAMS = flags midi compose safetensors compare philox data train vector matmul gpt lstm gradients lstm_gradients \
	plain_gpt plain_lstm sample synth player
SANITIZED = flags midi compose safetensors compare data train vector matmul gpt lstm plain_gpt plain_lstm sample \
	synth player
CHECKS = $(PROGRAMS:%=build/test_%) $(SANITIZED:%=build/test_%_sanitized) build/test_matmul_double \
	build/test_matmul_plain build/test_lstm_plain
SCRIPTS = test/test_headers.sh test/test_emu.sh test/test_prepare.sh test/test_cli.sh test/test_resume.sh \
	test/test_plain.sh test/test_paper.sh test/test_sampler.sh test/test_player.sh
BUILT = all plain dev/tools/paper dev/tools/compare_tensors $(CHECKS) build/plain_step_gpt build/plain_step_lstm \
	$(foreach build,cpu cpu_sanitized cpu_narrow emu emu_sanitized emu_race,$(TRAINERS:%=build/%_$(build)))

test: $(BUILT)
	@CC='$(CC)' test/run $(CHECKS) $(SCRIPTS) test/test_matmul_gpu.sh 'test/test_gpu.sh gpt' 'test/test_gpu.sh lstm'

test-long: $(BUILT) build/test_gradients_sanitized build/test_gpt_plain
	@CC='$(CC)' test/run $(CHECKS) $(SCRIPTS) build/test_gradients_sanitized build/test_gpt_plain \
		'test/test_matmul_gpu.sh all' 'test/test_gpu.sh gpt all' 'test/test_gpu.sh lstm all' 'test/test_recurrence.sh all'

DOUBLE = build/test_gradients build/test_gradients_sanitized build/test_lstm_gradients \
	build/test_lstm_gradients_sanitized build/test_matmul_double
$(DOUBLE): override CFLAGS += -DREAL=double
build/test_%_plain: NATIVE = # the narrowest vectors that the compiler assumes

build/plain_step_%: test/plain_step.c build/flags
	$(COMPILE) -Werror -DPLAIN_$* $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%: test/test_%.c build/player_page.h build/flags
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_double: test/test_%.c build/player_page.h build/flags
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_plain: test/test_%.c build/player_page.h build/flags
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_sanitized: test/test_%.c build/player_page.h build/flags
	$(COMPILE) -Werror $(SANITIZE) $(LDFLAGS) -o $@ $< $(LDLIBS)

clean:
	rm -rf build $(TRAINERS) sample_music $(PREPARE) $(PLAIN) dev/tools/compare_tensors dev/tools/paper

-include $(wildcard build/dep/*.d)

.PHONY: all bench check compare help paper plain test test-long clean FORCE
