# make                     the trainer, the sampler, and the two programs that prepare music
# make train_gpt_music     the trainer, and the sampler beside it; DEVICE=cpu|cuda|emu forces one
# make test                all checks, a few minutes; make test-long: the slow ones too
# make bench               the trainers' speed on this machine
# make compare             the CUDA trainers against the CPU reference, tensor by tensor
# make paper               the published comparison: both models trained, evaluated and sampled, DATA=a MIDI folder
# CC=clang, OPENMP=no (one thread) and CFLAGS=... do what one expects.

# -O3 -march=native: the matrix products use the vectors of this machine (matmul.h).
# -ffp-contract=fast: multiply-adds, also where -std would forbid them. Never -ffast-math: NaN and infinity must work.
CFLAGS = -O3 $(NATIVE)
override CFLAGS += -std=gnu11 -ffp-contract=fast -fno-math-errno -Wall -Wextra
LDLIBS = -lm
NATIVE := $(shell $(CC) -march=native -E -x c /dev/null >/dev/null 2>&1 && echo -march=native)

# OpenMP, unless the compiler cannot or OPENMP=no; without it pragmas are just comments.
ifndef OPENMP
OPENMP := $(shell probe=$$(mktemp) && echo 'int main(void) { return 0; }' | $(CC) -fopenmp -x c - -o $$probe 2>/dev/null && echo yes; rm -f $$probe)
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

HOST = dev/safetensors.h dev/curves.h dev/flags.h dev/philox.h dev/data.h
PREPARE = data_prep/prepare_music data_prep/compose_music

TRAINERS = train_gpt_music train_lstm_music

all: $(TRAINERS) sample_music

CPU_TRAINER = dev/train.h dev/host_model.h dev/matmul.h dev/vector.h $(HOST) build/flags
CPU_SAYS = built for the CPU ($(WHY)), $(if $(filter yes,$(OPENMP)),all cores,ONE THREAD$(if $(OPENMP),: OPENMP=$(OPENMP),: the compiler has no OpenMP))

ifeq ($(DEVICE),cpu)
$(TRAINERS): %: dev/%.c $(CPU_TRAINER) | $(PREPARE) sample_music
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)
	@echo "$@: $(CPU_SAYS)"
else ifeq ($(DEVICE),cuda)
$(TRAINERS): %: %.cu $(wildcard dev/*.cuh) dev/train.h $(HOST) build/flags | $(PREPARE) sample_music
	nvcc -O3 -std=c++17 -arch=$(ARCH) -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas -o $@ $<
	@echo "$@: built for the GPU, $(ARCH) ($(WHY))"
else
$(TRAINERS): %: build/%_emu | $(PREPARE) sample_music
	cp $< $@
	@echo "$@: built for the emulator, DEVICE=emu: the CUDA source on the CPU, slowly"
endif

build/%_cpu: dev/%.c $(CPU_TRAINER)
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)

# The CUDA sources on the CPU (dev/cuda_emu.h): as C++ in build/emu, where an #include looks before it does so here.
CXX = $(if $(findstring clang,$(CC)),clang++,g++)
EMU_CFLAGS = -std=c++17 -ffp-contract=fast -fno-math-errno -Wall -Wextra -I. -Idev
EMU_HEADERS = dev/cuda_emu.h dev/cuda_emu_api.h $(patsubst %,build/emu/%,$(wildcard dev/*.cuh)) dev/train.h $(HOST) build/flags

build/emu/%: % dev/cuda2cpp.sed
	@mkdir -p $(@D)
	@{ echo '#line 1 "$<"'; sed -f dev/cuda2cpp.sed $<; } >$@
build/%_emu: build/emu/%.cu $(EMU_HEADERS)
	$(CXX) $(EMU_CFLAGS) -O2 $(NATIVE) $(PARALLEL) $(LDFLAGS) -o $@ -x c++ $< $(LDLIBS)
build/%_emu_sanitized: build/emu/%.cu $(EMU_HEADERS)
	$(CXX) $(EMU_CFLAGS) -O1 -g $(PARALLEL) -fsanitize=address,undefined -fno-sanitize-recover=all $(LDFLAGS) -o $@ -x c++ $< $(LDLIBS)
build/%_emu_race: build/emu/%.cu dev/cuda_emu_race.cpp $(EMU_HEADERS)
	$(CXX) $(EMU_CFLAGS) -O1 -g -Wno-unknown-pragmas -fsanitize=thread -c -o $@.o -x c++ $<
	$(CXX) $(EMU_CFLAGS) -O2 $(LDFLAGS) -o $@ $@.o dev/cuda_emu_race.cpp $(LDLIBS)
.PRECIOUS: build/emu/%

SAMPLER = midi.h dev/decoder.h dev/weights.h dev/vector.h dev/roll.h dev/synth.h dev/player.h build/player_page.h
sample_music: sample_music.c $(SAMPLER) $(HOST) build/flags
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)

# The page of sample_music -o song.html, as a string of C.
build/player_page.h: dev/player.html
	@mkdir -p $(@D)
	@{ echo 'static const char player_page[] ='; sed 's/[\\"?]/\\&/g; s/.*/    "&\\n"/' $<; echo '    ;'; } >$@

data_prep/%: data_prep/%.c midi.h $(HOST) build/flags
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)

dev/compare_tensors: dev/compare_tensors.c dev/flags.h dev/safetensors.h build/flags
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)

dev/paper: dev/paper.c dev/train.h midi.h $(HOST) build/flags
	$(CC) $(CFLAGS) $(PARALLEL) $(LDFLAGS) -o $@ $< $(LDLIBS)

# Changes only when the compiler or its flags do, so that everything is built again then.
build/flags: FORCE
	@mkdir -p build
	@echo '$(CC) $(CFLAGS) $(PARALLEL)' | cmp -s - $@ || echo '$(CC) $(CFLAGS) $(PARALLEL)' > $@
FORCE:

bench: $(TRAINERS)
	./train_gpt_music --bench 20
	./train_lstm_music --bench 20

# DATA=folder and the other variables that it takes stand at the head of dev/paper.sh.
paper: $(TRAINERS) sample_music $(PREPARE) dev/paper
	@dev/paper.sh

# The CUDA trainers against the CPU reference, number by number: on a GPU in full size, else through the emulator.
compare: $(TRAINERS:%=build/%_cpu) $(PREPARE) dev/compare_tensors $(if $(filter cuda,$(DEVICE)),$(TRAINERS),$(TRAINERS:%=build/%_emu))
	dev/compare.sh build/train_gpt_music_cpu $(if $(filter cuda,$(DEVICE)),./train_gpt_music,build/train_gpt_music_emu --layers 2 --window 64 --batch 2)
	dev/compare.sh build/train_lstm_music_cpu $(if $(filter cuda,$(DEVICE)),./train_lstm_music,build/train_lstm_music_emu --window 16 --batch 2)

# ---- tests: test/test_NAME.c or test/test_NAME.sh, each ending in a line `NAME: N passed, N failed`

TEST_CFLAGS = $(CFLAGS) $(PARALLEL) -Werror
SANITIZE = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
PROGRAMS = flags midi compose safetensors compare philox data train vector matmul gpt lstm gradients lstm_gradients sample synth player
SANITIZED = flags midi compose safetensors compare data train vector matmul gpt lstm sample synth player
GPU_CHECKS = dev/compare_tensors $(foreach build,cpu emu emu_sanitized emu_race,$(TRAINERS:%=build/%_$(build)))
ALL_SOURCES = $(wildcard *.h *.c dev/*.h dev/*.c data_prep/*.c test/*.c test/*.h) build/player_page.h
CHECKS = $(PROGRAMS:%=build/test_%) $(SANITIZED:%=build/test_%_sanitized) build/test_matmul_double build/test_matmul_plain build/test_lstm_plain
SCRIPTS = test/test_headers.sh test/test_emu.sh test/test_prepare.sh test/test_cli.sh test/test_resume.sh test/test_paper.sh test/test_sampler.sh test/test_player.sh

test test-long: dev/paper
test: all $(CHECKS) $(GPU_CHECKS)
	@CC='$(CC)' test/run $(CHECKS) $(SCRIPTS) test/test_matmul_gpu.sh 'test/test_gpu.sh gpt' 'test/test_gpu.sh lstm'

test-long: all $(CHECKS) $(GPU_CHECKS) build/test_gradients_sanitized build/test_gpt_plain
	@CC='$(CC)' test/run $(CHECKS) $(SCRIPTS) build/test_gradients_sanitized build/test_gpt_plain 'test/test_matmul_gpu.sh all' \
		'test/test_gpu.sh gpt all' 'test/test_gpu.sh lstm all' 'test/test_recurrence.sh all'

build/test_gradients build/test_gradients_sanitized build/test_lstm_gradients build/test_lstm_gradients_sanitized build/test_matmul_double build/test_vector_double: TEST_CFLAGS += -DREAL=double
build/test_%_plain: NATIVE = # the narrowest vectors that the compiler assumes

build/test_%: test/test_%.c $(ALL_SOURCES) build/flags
	$(CC) $(TEST_CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_sanitized: test/test_%.c $(ALL_SOURCES) build/flags
	$(CC) $(TEST_CFLAGS) $(SANITIZE) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_double: test/test_%.c $(ALL_SOURCES) build/flags
	$(CC) $(TEST_CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_plain: test/test_%.c $(ALL_SOURCES) build/flags
	$(CC) $(TEST_CFLAGS) $(LDFLAGS) -o $@ $< $(LDLIBS)

clean:
	rm -rf build $(TRAINERS) sample_music $(PREPARE) dev/compare_tensors dev/paper

.PHONY: all bench compare paper test test-long clean FORCE
