"""Names of what is told over OTLP, as OpenTelemetry's semantic conventions have them.

Written down here, and checked by the tests against the published package: the conventions for
generative models are still moving from one of its modules to another, and a server must not fail
to start because of that. What is ours begins with `octavo.`.

Sources: https://opentelemetry.io/docs/specs/semconv/http/http-spans/ and
https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

ERROR_TYPE = "error.type"

# HTTP
METHOD = "http.request.method"
ROUTE = "http.route"
STATUS = "http.response.status_code"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
CLIENT_ADDRESS = "client.address"
CLIENT_PORT = "client.port"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
PROTOCOL_VERSION = "network.protocol.version"
USER_AGENT = "user_agent.original"

# generative models
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
TOP_K = "gen_ai.request.top_k"
SEED = "gen_ai.request.seed"
FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
DIMENSIONS = "gen_ai.embeddings.dimension.count"
OUTPUT_TYPE = "gen_ai.output.type"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
TOKEN_TYPE = "gen_ai.token.type"

# ours
REQUEST_ID = "octavo.request_id"
NUM_CALLS = "octavo.num_calls"
NUM_INPUTS = "octavo.num_inputs"
NUM_PREEMPTIONS = "octavo.num_preemptions"
TIME_TO_FIRST_TOKEN = "octavo.time_to_first_token"
GPU_SECONDS = "octavo.gpu_seconds"
GPU_SECONDS_PREFILL = "octavo.gpu_seconds.prefill"
GPU_SECONDS_DECODE = "octavo.gpu_seconds.decode"
GPU_SECONDS_WASTE = "octavo.gpu_seconds.waste"
COST = "octavo.cost"
CURRENCY = "octavo.currency"

# metrics, and the bounds of their buckets that the conventions prescribe
REQUEST_DURATION = "gen_ai.server.request.duration"
SERVER_TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"
TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"
TOKEN_USAGE = "gen_ai.client.token.usage"

# fmt: off
BOUNDS: dict[str, tuple[float, ...]] = {
    REQUEST_DURATION: (
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    ),
    SERVER_TIME_TO_FIRST_TOKEN: (
        0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    ),
    TIME_PER_OUTPUT_TOKEN: (
        0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    ),
    TOKEN_USAGE: (
        1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864,
    ),
}
# fmt: on
