# Two commands do everything on a fresh machine: `make demo` and `make test`. See `make help`.
.NOTPARALLEL:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# One stamp per interpreter: `make PYTHON=/usr/bin/python3 test` builds for that one.
BUILT := $(VENV)/.built$(subst /,_,$(PYTHON))
NATIVE := setup.py pyproject.toml $(wildcard csrc/*.[ch] csrc/codecs/* vmdump/kernels/*.pyx vmdump/kernels/*.pxd)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint docs bench fuzz man wheel clean
help:
	@echo 'make demo    dump a synthetic guest in every format, check every page, show a table   (SIZE=256M)'
	@echo 'make test    the whole test suite, real readers included                              (ARGS="-k kdump")'
	@echo 'make lint    ruff, mypy, stubtest, cython-lint, C warnings, house rules of the texts'
	@echo 'make docs    the site: build/docs/index.html; warnings are errors'
	@echo 'make bench   vmdump, QEMU and makedumpfile in turns: table, JSON, chart; 20 minutes   (ARGS="--quick")'
	@echo 'make fuzz    hostile dumps: fuzz the readers and csrc/, two minutes a target           (FUZZ_SECONDS=120)'
	@echo 'make man     manual pages of all commands, in man/'
	@echo 'make wheel   the sdist, and a wheel with all codec libraries inside, in dist/'
	@echo 'make clean   remove everything that was made'
	@echo
	@echo 'Each of them sets up what it needs first: scripts/setup.  PYTHON=/path/to/python3 chooses the interpreter,'
	@echo 'APT=no leaves the system packages alone.'

$(BUILT): $(NATIVE) scripts/setup
	@scripts/setup build
	@touch $@

$(BUILT)-%: $(BUILT) pyproject.toml scripts/setup
	@scripts/setup $*
	@touch $@

demo: $(BUILT)
	@$(BIN)/python -m vmdump demo $(SIZE)
	@echo 'Next:  . $(BIN)/activate'
	@echo '       vmdump guests           # the guests that run on this host, and what dumps each of them'
	@echo 'README.md goes on from there, and docs/tutorial.md needs no guest.'

test: $(BUILT)-test
	@$(BIN)/python scripts/guest || true # it has said which tests are skipped
	@$(BIN)/python tests/live/kernels.py --download arm64 i386 || true # likewise
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(BUILT)-lint
	@scripts/lint

docs: $(BUILT)-docs
	@$(BIN)/python -m sphinx --builder html --quiet --fail-on-warning --keep-going --jobs auto docs build/docs
	@echo 'docs: build/docs/index.html' >&2

bench: $(BUILT)-test
	@$(BIN)/python scripts/guest || true # it has said which guests are missing
	@$(BIN)/python bench/run.py $(ARGS)

fuzz: $(BUILT)-fuzz
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

man: $(BUILT)
	@$(BIN)/python scripts/manual man

wheel: $(BUILT)-wheel
	@scripts/wheel

clean:
	rm -rf $(VENV) build dist man *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f vmdump/kernels/*.so vmdump/kernels/*.c vmdump/kernels/*.html
	find vmdump tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
