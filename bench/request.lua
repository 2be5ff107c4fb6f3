-- wrk's requests: one of the given Authorization headers each, at once or with a pause between two; a JSON line at the end.
local function lines(path)
  local found = {}
  for line in io.lines(path) do found[#found + 1] = line end
  return found
end

local form = os.getenv("BENCH_FORM")
local headers_file = os.getenv("BENCH_AUTHORIZATIONS")
local etag = os.getenv("BENCH_ETAG")
local pause_ms = tonumber(os.getenv("BENCH_PAUSE_MS") or "0")
local requests, number = {}, 0

function setup(thread)
  number = number + 1
  thread:set("number", number)
end

function init()
  math.randomseed(number * 7919 + 1)
  if form then
    for _, authorization in ipairs(lines(headers_file)) do
      local headers = { ["Authorization"] = authorization, ["Content-Type"] = "application/x-www-form-urlencoded" }
      requests[#requests + 1] = wrk.format("POST", nil, headers, form)
    end
  else
    requests[1] = wrk.format("GET", nil, etag and { ["If-None-Match"] = etag } or {})
  end
end

function request()
  return requests[#requests == 1 and 1 or math.random(#requests)]
end

-- wrk asks for a pause only where there is such a function. Random, so that callers do not march in step.
if pause_ms > 0 then
  function delay()
    return math.floor(-pause_ms * math.log(1 - math.random()) + 0.5)
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "refused": %d, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
