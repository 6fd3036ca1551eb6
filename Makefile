# Everything sets itself up: a virtual environment, the Triton server, the demo model. Quick the second time.
#   make demo PROMPT="…"      make serve HTTP_PORT=8000 GRPC_PORT=8001 METRICS_PORT=8002 DEPLOYMENT=deployments/local.toml
#   PYTHON=/path/to/python3.11 chooses the Python; TANDEM_TRITON_DIR=/opt/tritonserver a Triton server that is there

DEPLOYMENT   ?= deployments/local.toml
PROMPT       ?= What is the capital of France? Answer in one sentence.
HTTP_PORT    ?= 8000
GRPC_PORT    ?= 8001
METRICS_PORT ?= 8002
HOST         ?= http://127.0.0.1:8000
# Options of a load test: make replay LOAD="--rounds 5"; of locust: make locust LOCUST="--headless -u 20 -t 60s"; of the
# test in containers: make compose-test COMPOSE="--load-report docs/load_report.html"
LOAD         ?=
COMPOSE      ?=
LOCUST       ?= --web-host 127.0.0.1
MINUTES      ?= 30

DEMO_MODEL := .tandem/models/smollm2-135m-instruct/tandem.json
BIN        := .venv/bin

export PYTHON
export DEMO_PROMPT := $(value PROMPT)

.NOTPARALLEL:
.PHONY: help demo serve test test-gpu compose-test disruption lint bench bench-router simulate perf perf-sweep soak
.PHONY: soak-faults fuzz locust load-report compare replay overhead overload clean core dev triton
help:
	@echo "make demo    one answer from a real server, streamed     (PROMPT=\"…\")"
	@echo "make serve   serve until Ctrl-C                          (HTTP_PORT= GRPC_PORT= METRICS_PORT= DEPLOYMENT=)"
	@echo "make test    all tests          make lint   ruff and mypy"
	@echo "make test-gpu   TensorRT-LLM's engine on GPUs, inside NVIDIA's container: docs/tensorrt_llm.md"
	@echo "make compose-test   docker-compose.yml for real, from a bare Debian machine, as root"
	@echo "make bench   the engine and the whole stack, measured    make perf   perf_analyzer"
	@echo "make bench-router   the router alone: decisions and block events a second"
	@echo "make simulate       routing policies on 8 to 512 simulated workers, and the picture (an hour on two cores)"
	@echo "make soak    14,000 requests, a tenth of which leave: nothing hangs, is left or grows"
	@echo "make disruption  parts of six hosts killed, stopped, cut off in turn under 64 streams: nothing is lost (root)"
	@echo "make soak-faults a fault every 10 s under mixed load                                   (MINUTES=30, root)"
	@echo "make fuzz    10,000 malformed requests: each is answered, nothing dies"
	@echo "make load-report   users' load, one page of figures and plots    make compare A=… B=…   two such runs  (LOAD=\"…\")"
	@echo "make locust        locust's users against HOST, with its web page    make perf-sweep   perf_analyzer over load"
	@echo "make replay        a trace in real time, per routing policy    make overhead   the path with engines of no time"
	@echo "make overload    ten times what simulated workers can do: what is done of it, and how soon the rest is refused"
	@echo "make clean   remove everything that was set up"

demo: core triton $(DEMO_MODEL)
	@$(BIN)/tandem generate "$$DEMO_PROMPT" --deployment $(DEPLOYMENT)

serve: core triton $(DEMO_MODEL)
	@exec $(BIN)/tandem serve $(DEPLOYMENT) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT)

test: dev triton $(DEMO_MODEL)
	$(BIN)/pytest tests -m "not alone" -n 2 --dist loadfile --durations 20
	$(BIN)/pytest tests -m alone

test-gpu:
	$(or $(PYTHON),python3) -m pytest tests/gpu --timeout 1800

compose-test: dev triton
	$(BIN)/python -m tests.compose $(COMPOSE)

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/bench.py

bench-router: dev
	$(BIN)/python loadtest/router_bench.py

simulate: dev
	$(BIN)/python loadtest/simulate.py
	$(BIN)/python loadtest/plot_simulation.py

perf: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/perf.py

soak: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/soak.py

disruption: dev triton $(DEMO_MODEL)
	$(BIN)/pytest tests/disruption --timeout 600

soak-faults: dev triton $(DEMO_MODEL)
	PYTHONPATH=. $(BIN)/python loadtest/fault_soak.py $(MINUTES)

fuzz: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/fuzz.py

perf-sweep: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/perf_sweep.py $(LOAD)

locust: dev
	$(BIN)/locust -f loadtest/locustfile.py --host $(HOST) $(LOCUST)

load-report: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/load_report.py $(LOAD)

compare: dev
	$(BIN)/python loadtest/compare.py $(A) $(B)

replay: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/replay.py $(LOAD)
	$(BIN)/python loadtest/plot_replay.py

overhead: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/overhead.py $(LOAD)

overload: dev triton $(DEMO_MODEL)
	$(BIN)/python loadtest/overload.py

clean:
	rm -rf .venv .tandem .mypy_cache .ruff_cache .pytest_cache .hypothesis python_backends/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

core:
	@sh build/setup

dev:
	@sh build/setup dev,loadtest

triton: | core
	@$(BIN)/python -m tandem.triton.install

$(DEMO_MODEL): | core
	@$(BIN)/python build/demo_model.py
