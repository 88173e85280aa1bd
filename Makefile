# make                     the trainers, the sampler, and the two programs that prepare music
# make train_gpt_music     the trainer, and the sampler beside it; DEVICE=cpu|cuda|emu forces one
#                          CLUSTERS=1: with kernels that no GPU has run yet (dev/cuda/cluster.cuh)
# make plain               both models in their plainest form, and an n-gram: small programs to read first
# make test                all checks, a few minutes; make test-long: the slow ones too
# make check T=midi        the tests of one subject, with all that they print
# make fuzz T=midi FOR=60  a fuzz target of test/fuzz for so many seconds; without T each of them (clang's fuzzer)
# make exercise N=1        an exercise of dev/doc/exercises.md, in a copy of its own
# make format              clang-format 14 over all C and CUDA; make lines: lines of code by room, and what to read
# make bench               the trainers' speed on this machine
# make count               what a GPU would do in a training step, counted without one, and a model of its time
# make ladder              kernels from naive to fast (dev/ladder), each checked and counted, on a GPU timed too
# make compare             the CUDA trainers against the CPU reference, tensor by tensor
# make paper               the published comparison: both models trained, evaluated and sampled, DATA=a MIDI folder
# make show_window         dev/tools/show_window, which makes a page of what models see in a window of a piece
# make starter-model       data_prep/starter_model.safetensors anew, which sample_music uses until a model is trained
# make help                these lines
# CC=clang, OPENMP=no (one thread) and CFLAGS=... do what one expects.

# -O3 -march=native: the matrix products use the vectors of this machine (dev/cpu/matmul.h).
# -ffp-contract=fast: multiply-adds, also where -std would forbid them. Never -ffast-math: NaN and infinity must work.
# _FILE_OFFSET_BITS: on 32 bits, too, files and folders may be as large as the system lets them.
CFLAGS = -O3 $(NATIVE)
override CFLAGS += -std=gnu11 -D_FILE_OFFSET_BITS=64 -ffp-contract=fast -fno-math-errno -Wall -Wextra
LDLIBS = -lm
NATIVE := $(shell $(CC) -march=native -E -x c /dev/null >/dev/null 2>&1 && echo -march=native)

# OpenMP, unless the compiler cannot or OPENMP=no; without it pragmas are just comments.
ifndef OPENMP
OPENMP := $(shell probe=$$(mktemp) && echo 'int main(void) { return 0; }' | \
	$(CC) -fopenmp -x c - -o $$probe 2>/dev/null && echo yes; rm -f $$probe)
endif
PARALLEL := $(if $(filter yes,$(OPENMP)),-fopenmp,-Wno-unknown-pragmas)

# DEVICE: cuda where there are nvcc and a GPU, else cpu; emu runs the CUDA source on the CPU, to learn and to debug.
NVCC := $(shell command -v nvcc 2>/dev/null)
GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
DEVICE ?= $(if $(and $(NVCC),$(GPU)),cuda,cpu)
ifeq ($(filter cuda cpu emu,$(DEVICE)),)
$(error DEVICE=$(DEVICE) is unknown; it can be cuda, cpu or emu)
endif
ON_GPU = $(filter cuda,$(DEVICE))
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

# The C++ compiler of the same make: gcc-13 has g++-13, clang-14 clang++-14, cc c++, after any prefix, folder or ccache.
# Sizes are enums, and arithmetic on them is meant.
CXX := $(shell echo '$(CC)' | \
	sed -E 's,([^ /]*(cc|clang))(-[^ /]*)?( |$$),\1++\3\4,; s/gcc\+\+/g++/; s/cc\+\+/c++/')
CXX_WARNINGS = -Wall -Wextra \
	$(addprefix -Wno-deprecated-,enum-enum-conversion anon-enum-enum-conversion enum-float-conversion)
# CLUSTERS=1: with the kernels of cuda/cluster.cuh, which no GPU has run yet. The emulator's programs have them always.
CUDA = -std=c++20 -Xcompiler '$(CXX_WARNINGS) -Wno-unknown-pragmas' $(if $(filter 1,$(CLUSTERS)),-DCLUSTERS=1)

# Files that change only when their text does, so that what depends on them is built again then.
build/flags: TEXT = $(CC) $(CXX) $(CFLAGS) $(PARALLEL)
build/device: TEXT = $(DEVICE) $(ARCH) $(CLUSTERS)
build/clusters: TEXT = $(CLUSTERS)
build/flags build/device build/clusters: FORCE
	@mkdir -p build/dep
	@echo '$(TEXT)' | cmp -s - $@ || echo '$(TEXT)' > $@
FORCE:

# ---- programs

THREADS = $(if $(filter yes,$(OPENMP)),all cores,ONE THREAD: $(or $(OPENMP:%=OPENMP=%),the compiler has no OpenMP))

ifeq ($(DEVICE),cuda)
$(TRAINERS): %: %.cu build/flags build/device | $(PREPARE) sample_music
	nvcc -O3 $(CUDA) -arch=$(ARCH) $(INCLUDES) $(DEPENDENCIES) -o $@ $<
	@echo "$@: built for the GPU, $(ARCH) ($(WHY))"
else
BUILT_FOR_cpu = built for the CPU ($(WHY)), $(THREADS)
BUILT_FOR_emu = built for the emulator, DEVICE=emu: the CUDA source on the CPU, slowly
$(TRAINERS): %: build/%_$(DEVICE) build/device | $(PREPARE) sample_music
	cp $< $@
	@echo "$@: $(BUILT_FOR_$(DEVICE))"
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

# The page of sample_music -o song.html, and what show_window adds to it, as strings of C.
build/player_page.h: dev/sample/player.html
build/window_page.h: dev/tools/window.html
build/player_page.h build/window_page.h:
	@mkdir -p $(@D)
	@{ echo 'static const char $(basename $(@F))[] ='; \
		sed 's/[\\"?]/\\&/g; s/.*/    "&\\n"/' $<; echo '    ;'; } >$@

PLAIN = dev/plain/ngram dev/plain/plain_gpt dev/plain/plain_lstm
plain: $(PLAIN) $(PREPARE)

TOOLS = $(addprefix dev/tools/,compare_tensors music_stats paper show_window)
show_window: dev/tools/show_window
dev/tools/show_window: | build/player_page.h build/window_page.h
$(PLAIN) $(PREPARE) $(TOOLS): %: %.c build/flags
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)

# ---- the CUDA sources on the CPU (dev/emu/cuda_emu.h): as C++ in build/emu, which is searched before the checkout

EMULATED = _emu _emu_sanitized _emu_race
EMU_SOURCES = $(patsubst %,build/emu/%,$(wildcard *.cu dev/cuda/*.cuh dev/ladder/*.cu* test/*.cu))
EMU_COMPILE = $(CXX) -std=c++20 -DCLUSTERS=1 $(CXX_WARNINGS) -ffp-contract=fast -fno-math-errno \
	-Ibuild/emu -Ibuild/emu/dev $(INCLUDES) $(DEPENDENCIES)

build/emu/%: % dev/emu/cuda2cpp.sed
	@mkdir -p $(@D)
	@{ echo '#line 1 "$<"'; sed -f dev/emu/cuda2cpp.sed $<; } >$@
# Tests of single kernels compare the bytes of all three builds, so none of these may fuse a product with a sum.
build/test/%_emu: private NATIVE =
build/%_emu: build/emu/%.cu build/flags | $(EMU_SOURCES)
	@mkdir -p $(@D)
	$(EMU_COMPILE) -O2 $(NATIVE) $(PARALLEL) $(LDFLAGS) -o $@ -x c++ $< $(LDLIBS)
build/%_emu_sanitized: build/emu/%.cu build/flags | $(EMU_SOURCES)
	@mkdir -p $(@D)
	$(EMU_COMPILE) -Werror -O0 -g $(PARALLEL) -fsanitize=address,undefined -fno-sanitize-recover=all $(LDFLAGS) \
		-o $@ -x c++ $< $(LDLIBS)
# Races: -Og, because at -O0 GCC does not report a store of what a function returns.
build/%_emu_race: build/emu/%.cu build/cuda_emu_race.o build/flags | $(EMU_SOURCES)
	@mkdir -p $(@D)
	$(EMU_COMPILE) -Werror -Og -g -Wno-unknown-pragmas -fsanitize=thread -c -o $@.o -x c++ $<
	$(CXX) $(LDFLAGS) -o $@ $@.o build/cuda_emu_race.o $(LDLIBS)
# Counts: by GCC, optimized but for what splits or joins the loads and stores that the source states.
COUNT_CXX := $(if $(findstring clang,$(CXX)),g++,$(CXX))
build/%_emu_count build/cuda_emu_count.o: private CXX = $(COUNT_CXX)
build/%_emu_count: build/emu/%.cu build/cuda_emu_count.o build/flags | $(EMU_SOURCES)
	@mkdir -p $(@D)
	$(EMU_COMPILE) -Werror -O2 -fno-tree-sra -fno-store-merging -fno-tree-vectorize -g -Wno-unknown-pragmas \
		-fsanitize=thread -c -o $@.o -x c++ $<
	$(CXX) $(LDFLAGS) -o $@ $@.o build/cuda_emu_count.o $(LDLIBS)
build/cuda_emu_race.o build/cuda_emu_count.o: build/%.o: dev/emu/%.cpp build/flags
	$(CXX) -std=c++20 $(CXX_WARNINGS) -Werror -O2 $(INCLUDES) $(DEPENDENCIES) -c -o $@ $<
.PRECIOUS: build/emu/%

# ---- tools

bench: $(TRAINERS)
	./train_gpt_music --bench 20
	./train_lstm_music --bench 20

# Where there is nvcc, also what it makes of the kernels for two architectures.
count: $(TRAINERS:%=build/%_emu_count) $(PREPARE) $(if $(NVCC),$(foreach arch,80 90,$(TRAINERS:%=build/nvcc/%.$(arch))))
	@dev/tools/count.sh gpt
	@dev/tools/count.sh lstm

# The rungs, each with the stages of the plain models that it is checked by; for the counts, and for a GPU.
LADDER = $(patsubst dev/ladder/%.cu,build/dev/ladder/%,$(wildcard dev/ladder/*.cu))
LADDER_STAGES = build/dev/ladder/stages_gpt.o build/dev/ladder/stages_lstm.o
$(LADDER_STAGES): build/%.o: %.c build/flags
	@mkdir -p $(@D)
	$(COMPILE) -Werror -c -o $@ $<
$(LADDER:%=%_emu_count): $(LADDER_STAGES)
$(LADDER:%=%_emu_count): private LDLIBS = $(LADDER_STAGES) -lm
build/dev/ladder/%_cuda: dev/ladder/%.cu $(LADDER_STAGES) build/device
	nvcc -O3 $(CUDA) -arch=$(ARCH) $(INCLUDES) $(DEPENDENCIES) -o $@ $< $(LADDER_STAGES)
ladder: $(LADDER:%=%_emu_count) $(if $(ON_GPU),$(LADDER:%=%_cuda))
	@dev/ladder/ladder.sh

# DATA=folder and the other variables that it takes stand at the head of dev/tools/paper.sh.
paper: $(TRAINERS) sample_music $(PREPARE) dev/tools/paper dev/tools/music_stats
	@dev/tools/paper.sh

# What sample_music uses until a model is trained: some minutes of the Transformer, small, on the starter corpus.
STARTER = data_prep/starter_model.safetensors
starter-model: build/train_gpt_music_cpu $(PREPARE)
	rm -rf build/starter
	data_prep/compose_music --out build/starter
	data_prep/prepare_music --out build/starter build/starter/train build/starter/test
	build/train_gpt_music_cpu --data build/starter --out build/starter/out --layers 4 --width 96 --heads 6 \
		--hidden 192 --recipe tuned --lr 8e-3 --warmup 200 --weight-decay 0.1 --dropout 0.1 --epochs 1
	cp build/starter/out/model.safetensors $(STARTER)

# The CUDA trainers against the CPU reference, number by number: on a GPU in full size, else through the emulator.
compare: $(if $(ON_GPU),$(TRAINERS),$(TRAINERS:%=build/%_emu)) $(TRAINERS:%=build/%_cpu) $(PREPARE) \
	dev/tools/compare_tensors
	dev/tools/compare.sh build/train_gpt_music_cpu \
		$(if $(ON_GPU),./train_gpt_music,build/train_gpt_music_emu --layers 2 --window 64 --batch 2)
	dev/tools/compare.sh build/train_lstm_music_cpu \
		$(if $(ON_GPU),./train_lstm_music,build/train_lstm_music_emu --window 16 --batch 2)

exercise:
	@dev/doc/exercises/start.sh '$(N)'

HELP = sed -n '/^\#/!q; s/^\# //p' Makefile
help:
	@$(HELP)

# A name that no rule makes, and that is not a file either.
.DEFAULT:
	@test -e '$@' || { printf 'make: there is no target %s. These there are:\n\n' '$@'; $(HELP); exit 2; } >&2

# How each source is compiled, for clangd: a line of JSON for each command of the compiler.
compile_commands.json: FORCE
	@{ echo '['; $(MAKE) -Bn $(call needed,$(TESTS)) | sed -n -e 's/["\\]/\\&/g' -e \
		's|.* -MMD .* \([^ ]*\.cu*\)\( .*\)*$$|{"directory":"$(CURDIR)", "file":"\1", "command":"&"},|p' | \
		sed '$$s/,$$//'; echo ']'; } >$@

# Lines of code by room, and what a reader must open; clang-format 14 over all sources.
lines: all
	@dev/tools/lines.sh
format:
	$(or $(shell command -v clang-format-14),clang-format) -i \
		$(wildcard $(foreach folder,. data_prep dev dev/* test test/fuzz,\
		$(addprefix $(folder)/*.,c h cu cuh cpp)))

# ---- tests: test/test_NAME.c and test/test_NAME.sh, each ending in a line `NAME: N passed, N failed`. What follows a
# script after a colon are its arguments.

C_TESTS = $(patsubst test/%.c,build/%,$(wildcard test/test_*.c))
NOT_SANITIZED = build/test_philox build/test_gradients build/test_lstm_gradients build/test_faults
TESTS = $(C_TESTS) \
	$(filter-out $(addprefix test/test_,gpu.sh machines.sh recurrence.sh),$(wildcard test/test_*.sh)) \
	test/test_gpu.sh:gpt test/test_gpu.sh:lstm $(patsubst %,%_sanitized,$(filter-out $(NOT_SANITIZED),$(C_TESTS))) \
	build/test_matmul_double build/test_matmul_narrow build/test_lstm_narrow
LONG_TESTS = $(filter-out test/test_gpu.sh:% test/test_matmul_gpu.sh,$(TESTS)) build/test_gradients_sanitized \
	build/test_gpt_narrow test/test_gpu.sh:gpt:all test/test_gpu.sh:lstm:all test/test_matmul_gpu.sh:all \
	test/test_recurrence.sh:all test/test_machines.sh

# The files of tests, their programs or scripts; and the tests of the subject T, which may have several files.
needed = $(foreach test,$(1),$(firstword $(subst :, ,$(test))))
chosen = $(filter $(foreach name,test_$(T) test_$(T)_%,build/$(name) test/$(name).sh test/$(name).sh:%),$(1))
SUBJECTS = $(sort $(basename $(patsubst test/test_%,%,$(wildcard test/test_*.c test/test_*.sh))))
RUN_TESTS = CC='$(CC)' CXX='$(CXX)' JOBS=$(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))) test/run

test: $(call needed,$(TESTS))
	@$(RUN_TESTS) $(TESTS)

test-long: $(call needed,$(LONG_TESTS)) $(addprefix build/test/test_matmul_gpu_all,$(EMULATED)) $(LADDER:%=%_emu_count)
	@TEST_LONG=yes $(RUN_TESTS) $(LONG_TESTS)

CHECKS = $(or $(call chosen,$(TESTS)),$(call chosen,$(LONG_TESTS)))
check: $(call needed,$(CHECKS))
	@$(if $(CHECKS),$(RUN_TESTS) -v $(CHECKS),echo 'make check T=$(T): T must be one of $(SUBJECTS)' >&2; exit 2)

# What scripts run is made before them.
test/test_cli.sh test/test_sampler.sh test/test_sweep.sh: all
test/test_doc.sh: plain all
test/test_ngram.sh: dev/plain/ngram $(PREPARE)
test/test_paper.sh: all dev/tools/paper dev/tools/music_stats
test/test_player.sh: build/test_player data_prep/compose_music
test/test_prepare.sh test/test_resume.sh: $(PREPARE)
test/test_show.sh: $(PREPARE) $(TRAINERS:%=build/%_cpu) dev/tools/show_window
test/test_stats.sh: $(PREPARE) dev/tools/music_stats
test/test_headers.sh: build/player_page.h
test/test_ladder.sh: $(addprefix build/dev/ladder/,$(addsuffix _emu_count,\
	matmul_2_tiles attention_4_production layernorm_4_production lstm_4_production))
test/test_machines.sh: $(PREPARE) dev/tools/compare_tensors $(TRAINERS:%=build/%_cpu)
build/test_faults: | build/faults.so build/faults_gpt build/faults_lstm sample_music $(PREPARE) \
	dev/tools/compare_tensors dev/tools/music_stats dev/tools/show_window
test/test_count.sh: $(addprefix build/,test/test_count_emu_count $(TRAINERS:%=%_emu_count)) $(PREPARE)
test/test_emu.sh test/test_matmul_gpu.sh test/test_recurrence.sh: test/%.sh: $(addprefix build/test/%,$(EMULATED))
test/test_plain.sh: plain dev/tools/compare_tensors build/plain_step_gpt build/plain_step_lstm \
	$(foreach build,cpu cpu_sanitized cpu_narrow emu,$(TRAINERS:%=build/%_$(build)))
# One architecture that has bf16 and one that has not are enough for both models, but for the slow tests.
test/test_gpu.sh: $(PREPARE) dev/tools/compare_tensors $(foreach build,_cpu $(EMULATED),$(TRAINERS:%=build/%$(build))) \
	$(if $(NVCC),build/nvcc/train_gpt_music.80 build/nvcc/train_lstm_music.75)

# What nvcc says of a model's CUDA source for an architecture, with PTX and cubin beside it in a folder.
build/nvcc/train_%: build/clusters
	@mkdir -p $@.files
	nice nvcc -O3 $(CUDA) -Werror all-warnings -arch=sm_$(subst .,,$(suffix $@)) $(INCLUDES) $(DEPENDENCIES) \
		-Xptxas -v -keep -keep-dir $@.files -cubin -o $@.files/cubin $(basename $(@F)).cu \
		2>$@.said || { cat $@.said; exit 1; }
	@mv $@.said $@

# The library that lets a call fail, and trainers that show each step, and save it where the environment has OFTEN.
build/faults.so: test/faults/preload.c build/flags
	$(COMPILE) -Werror -fPIC -shared $(LDFLAGS) -o $@ $< -ldl
build/faults_%: dev/train_%_music.c build/flags
	$(COMPILE) -O1 -DPROGRESS_SECONDS=0 -DSAVE_SECONDS='(getenv("OFTEN") ? 0 : 300)' $(LDFLAGS) -o $@ $< $(LDLIBS)

SANITIZE = -Og -g1 -fsanitize=address,undefined -fno-sanitize-recover=all
DOUBLE = build/test_gradients build/test_gradients_sanitized build/test_lstm_gradients build/test_matmul_double
$(DOUBLE): private override CFLAGS += -DREAL=double
build/test_%_narrow: private NATIVE = # the narrowest vectors that the compiler assumes

build/plain_step_%: test/plain_step.c build/flags
	$(COMPILE) -Werror -DPLAIN_$* $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%: test/test_%.c build/flags | build/player_page.h
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_double: test/test_%.c build/flags | build/player_page.h
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_narrow: test/test_%.c build/flags | build/player_page.h
	$(COMPILE) -Werror $(LDFLAGS) -o $@ $< $(LDLIBS)
build/test_%_sanitized: test/test_%.c build/flags | build/player_page.h
	$(COMPILE) -Werror $(SANITIZE) $(LDFLAGS) -o $@ $< $(LDLIBS)

# ---- fuzz targets, test/fuzz/fuzz_NAME.c, where there is a clang with its fuzzer

FUZZ_CC = $(if $(findstring clang,$(CC)),$(CC),clang)
FUZZER := $(wildcard \
	$(dir $(shell $(FUZZ_CC) --rtlib=compiler-rt -print-libgcc-file-name 2>/dev/null))libclang_rt.fuzzer*)
FUZZ = $(patsubst test/fuzz/fuzz_%.c,%,$(wildcard test/fuzz/fuzz_*.c))
made_to_fuzz = $(if $(FUZZER),build/fuzz/seeds $(patsubst %,build/fuzz_%,$(1)))

# Without comparisons traced most targets run twice as fast, and reach the same code. Optimizing the whole sampler takes
# longer than it saves.
FUZZ_OPTIMIZE = -O1
build/fuzz_prime: private FUZZ_OPTIMIZE = -O0
FUZZ_COMPILE = $(FUZZ_CC) -std=gnu11 $(FUZZ_OPTIMIZE) -g1 -fsanitize=fuzzer,address,undefined \
	-fno-sanitize-recover=all -fno-sanitize-coverage=trace-cmp -Wall -Wextra -Werror -Wno-unknown-pragmas \
	-Wno-unused-function $(INCLUDES) $(DEPENDENCIES)
build/fuzz_%: test/fuzz/fuzz_%.c | build/flags build/player_page.h
	$(FUZZ_COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)
build/fuzz/seeds: test/fuzz/seeds.sh $(PREPARE) sample_music $(TRAINERS:%=build/%_cpu)
	$< $@

FOR = 60
FUZZED = $(if $(T),$(filter $(T),$(FUZZ)),$(FUZZ))
fuzz: $(call made_to_fuzz,$(FUZZED))
	@$(if $(FUZZED),,echo 'make fuzz T=$(T): T must be one of $(FUZZ)' >&2; exit 2;) \
		$(if $(FUZZER),,echo 'make fuzz: there is no clang with its fuzzer' >&2; exit 2;) \
		for target in $(FUZZED); do \
			test/fuzz/run.sh build/fuzz $$target -max_total_time=$(FOR) || failed=yes; \
		done; test -z "$$failed"

test/test_fuzz.sh: $(call made_to_fuzz,$(FUZZ))

clean:
	rm -rf build compile_commands.json $(TRAINERS) sample_music $(PREPARE) $(PLAIN) $(TOOLS)

-include $(wildcard build/dep/*.d)

.PHONY: all bench check clean compare count exercise format fuzz help ladder lines paper plain show_window \
	starter-model test test-long FORCE
