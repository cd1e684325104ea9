-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- The phases of a request in nginx, made of the modules beside it. Only this module, gw.health and gw.otlp know nginx.
--
-- A request holds up to four things: a slot and tokens of its tenant (the ticket), a place in the load of a peer, a probe
-- of a breaker, and a place among the waiters. Each is noted in ngx.ctx the moment it is taken; the log phase, which runs
-- for every request however it ends, gives back what is noted. The ticket is kept in $gw_ticket as well, because an
-- internal redirect drops ngx.ctx.

local auth = require("gw.auth")
local breaker = require("gw.breaker")
local conf = require("gw.conf")
local errors = require("gw.errors")
local health = require("gw.health")
local limiter = require("gw.limiter")
local metrics = require("gw.metrics")
local otlp = require("gw.otlp")
local picker = require("gw.picker")
local retry = require("gw.retry")
local scan = require("gw.scan")
local sha256 = require("gw.sha256")
local shed = require("gw.shed")
local slots = require("gw.slots")
local spans = require("gw.spans")
local sse = require("gw.sse")
local status = require("gw.status")
local strikes = require("gw.strikes")
local tokens = require("gw.tokens")
local trace = require("gw.trace")
local view = require("gw.view")

local balancer = require("ngx.balancer")
local cjson = require("cjson.safe")
local ssl = require("ngx.ssl")
local base = require("resty.core.base")
local ffi = require("ffi")
local clear_table = require("table.clear")
local new_table = require("table.new")

local ceil, max = math.ceil, math.max
local find, sub = string.find, string.sub

local M = {}

-- What nginx offers, each behind a small function. LuaJIT compiles functions that are called often, the innermost first. It
-- cannot begin with one that ends in the call of a built-in function ("return tonumber(...)") or that was called as a
-- metamethod, as those behind ngx.now, ngx.var, ngx.header and ngx.ctx. Having failed at one some times it compiles neither
-- that nor any function that calls it. These can be compiled, and have the others inside. For the same reason the modules
-- here put parentheses around a built-in function's result that they return.
local ngx_now, ngx_start_time, var, header, arg = ngx.now, ngx.req.start_time, ngx.var, ngx.header, ngx.arg

local ngx_exiting = ngx.worker.exiting

local function now_s()
    return (ngx_now())
end

local function start_time()
    return (ngx_start_time())
end

local function variable(name)
    local value = var[name]
    return value
end

local function set_variable(name, value)
    var[name] = value
end

local function set_header(name, value)
    header[name] = value
end

local function context()
    local ctx = ngx.ctx
    return ctx
end

local function status_code()
    local code = ngx.status
    return code
end

local function exiting()
    local ends = ngx_exiting()
    return ends
end

local function filter_argument(index)
    local value = arg[index]
    return value
end

-- Bytes of an answer without a stream that are kept to find its usage in: that of the OpenAI API comes last.
local TAIL = 65536
-- The paths of the API that a key may use. The first kind costs tokens.
local PAID = {
    ["/v1/chat/completions"] = true,
    ["/v1/completions"] = true,
    ["/v1/embeddings"] = true,
}
-- Gone through by number, for LuaJIT does not compile pairs.
local LIMIT_HEADERS = limiter.HEADERS
local SECONDS = { 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320 }
local SHORT = { 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10 }

-- Texts of statuses, made once.
local STATUS = setmetatable({}, {
    __index = function(texts, code)
        texts[code] = tostring(code)
        return texts[code]
    end,
})

-- {policy, peers: paths of the files; connect_s, send_s: seconds; client_pem: certificate and key for engines, if any;
-- tracing: {host, port, path, timeout_ms, ratio, follow, errors, queue, batch, service, node, region}, if there is a collector}:
-- see init.
local options
-- The client certificate for engines, parsed.
local client
-- The configuration in use, what was last seen of its files, and why the files are not in use (nil: they are).
local runtime, seen, refused
local started_at, loaded_at
-- The objects of this worker.
local worker
-- Contexts of requests that have ended, to be used again: they are the largest tables that a request makes.
local SPARES_MAX = 1024
local spare, spares = {}, 0

ffi.cdef([[
int kill(int pid, int sig);
]])

-- Is there such a worker? All workers have one user, so EPERM means that the number is somebody else's now; so does
-- another name.
local function alive(pid)
    if ffi.C.kill(pid, 0) ~= 0 then
        return false
    end
    local stream = io.open("/proc/" .. pid .. "/comm", "rb")
    if not stream then
        return true
    end
    local name = stream:read(5)
    stream:close()
    return name == "nginx"
end

local function read_file(path)
    local stream, err = io.open(path, "rb")
    if not stream then
        return nil, err
    end
    local text = stream:read("*a")
    stream:close()
    return text
end

-- What tells one version of a file from another without reading all of it: its length and its first bytes, with the id.
local function fingerprint(path)
    local stream = io.open(path, "rb")
    if not stream then
        return ""
    end
    local head = stream:read(256) or ""
    local size = stream:seek("end") or 0
    stream:close()
    return size .. ":" .. head
end

local function fingerprints()
    return fingerprint(options.policy) .. "\n" .. fingerprint(options.peers)
end

-- Read both files, each once. Returns a runtime and the texts by path; or nil and one sentence.
local function load_files()
    local texts = {}
    local found, sentences = conf.load(function(path)
        local text, err = read_file(path)
        texts[path] = text
        return text, err
    end, cjson.decode, options.policy, options.peers)
    if found then
        return found, texts
    end
    return nil, table.concat(sentences, "; ")
end

-- From now on this configuration counts. Its texts are kept for a reload that finds bad files.
local function use(config, texts)
    runtime, refused, loaded_at = config, nil, ngx.time()
    local kept = ngx.shared.gw_conf
    kept:set("policy", texts[options.policy])
    kept:set("peers", texts[options.peers])
end

-- The certificate that is shown to engines, and its key.
local function client_of(path)
    local pem = assert(read_file(path))
    return { cert = assert(ssl.parse_pem_cert(pem)), key = assert(ssl.parse_pem_priv_key(pem)) }
end

-- Health checks speak TLS as requests do: the certificate must be for the peer's name.
local function handshake(socket, peer)
    local ok, err = socket:setclientcert(client.cert, client.key)
    if not ok then
        return nil, err
    end
    return socket:sslhandshake(nil, peer.sni, true)
end

-- init_by_lua: read the configuration. With a bad one nginx does not start; at a reload the last good one, which the shared
-- dict keeps, goes on.
function M.init(given)
    options = given
    if options.client_pem then
        -- Here and not later: nginx is still root, and workers may not read the key.
        client = client_of(options.client_pem)
    end
    -- A request is one long way through many functions and short loops, not a loop that is gone through often. With LuaJIT's
    -- own bounds more of it stays in the interpreter; longer traces than these have more values than the machine has registers.
    jit.opt.start("maxrecord=4000", "maxside=1000", "loopunroll=60", "instunroll=20", "callunroll=10")
    started_at = ngx.time()
    seen = fingerprints()
    local config, found = load_files()
    if config then
        return use(config, found)
    end
    local err, kept = found, ngx.shared.gw_conf
    local policy, peers = kept:get("policy"), kept:get("peers")
    if policy and peers then
        local texts = { [options.policy] = policy, [options.peers] = peers }
        runtime = conf.load(function(path)
            return texts[path]
        end, cjson.decode, options.policy, options.peers)
    end
    if not runtime then
        error("the gateway's configuration is not good: " .. err, 0)
    end
    loaded_at, refused = ngx.time(), err
    ngx.log(ngx.ERR, "the gateway's new configuration is not used: ", err)
end

local function register(m)
    return {
        requests = m:counter("requests_total", "Requests by their answer.", { "tenant", "tier", "code" }),
        rejected = m:counter("rejected_total", "Requests that no engine saw.", { "tenant", "reason" }),
        tokens = m:counter("tokens_total", "Tokens by kind.", { "tenant", "kind" }),
        charged = m:counter("tokens_charged_total", "Tokens charged to budgets.", { "tenant" }),
        usage_missing = m:counter("usage_missing_total", "Answers without a usage.", { "cause" }),
        transitions = m:counter("breaker_transitions_total", "Breakers that changed.", { "peer", "to" }),
        retries = m:counter("retries_total", "Second tries, and why there was one or none.", { "reason" }),
        affinity = m:counter("affinity_total", "Choices of an engine.", { "result" }),
        checks = m:counter("health_changes_total", "Verdicts of health checks that changed.", { "peer", "to" }),
        reaped = m:counter("slots_reaped_total", "What dead workers held and was given back.", nil),
        reloads = m:counter("config_reload_total", "New configurations, by what became of them.", { "result" }),
        errors = m:counter("lua_errors_total", "Phases that failed.", { "phase" }),
        spans_sent = m:counter("spans_sent_total", "Spans that the collector took.", nil),
        spans_dropped = m:counter("spans_dropped_total", "Spans that were lost, by what went wrong.", { "reason" }),
        spans_waiting = m:worker("spans_waiting", "Requests of a worker whose spans wait for the collector."),
        ttft = m:histogram("ttft_seconds", "From the request to the first token.", { "region" }, SECONDS),
        itl = m:histogram("itl_seconds", "Between two chunks of a stream.", { "region" }, SHORT),
        seconds = m:histogram("request_seconds", "From the request to the end of its answer.", { "tier" }, SECONDS),
        own = m:histogram("gateway_seconds", "Until the request was given to an engine.", { "tier" }, SHORT),
        wait = m:histogram("queue_wait_seconds", "Waiting for room.", { "priority" }, SHORT),
    }
end

-- The queue of spans for the collector, and what sends them.
local function build_spans(count)
    local to = options.tracing
    if not to then
        return nil
    end
    -- So that each series is there before the first loss: a rate sees no rise from nothing.
    count.spans_sent:inc(0)
    for i = 1, #spans.REASONS do
        count.spans_dropped:inc(0, spans.REASONS[i])
    end
    return spans.new({
        ratio = to.ratio, follow = to.follow, errors = to.errors, queue = to.queue, batch = to.batch, rand = math.random,
        resource = { { "service.name", to.service }, { "host.name", to.node }, { "gpufleet.region", to.region } },
        count = function(what, number)
            if what == "sent" then
                count.spans_sent:inc(number)
            else
                count.spans_dropped:inc(number, what)
            end
        end,
    }), otlp.sender(to)
end

-- The objects for a configuration. What they count is in the shared dicts, so nothing is lost when they are replaced.
local function build(config, old)
    local shared, policy = ngx.shared, config.policy
    local w = {
        config = config,
        metrics = old and old.metrics,
        count = old and old.count,
        slots = old and old.slots,
        health = old and old.health,
        rand64 = old and old.rand64,
        spans = old and old.spans,
        send_spans = old and old.send_spans,
    }
    if not old then
        w.metrics = metrics.new({ dict = shared.gw_metrics, pid = ngx.worker.pid() })
        w.count = register(w.metrics)
        w.slots = slots.new({ dict = shared.gw_slots, ledger = shared.gw_ledger, pid = ngx.worker.pid() })
        w.health = health.new({
            dict = shared.gw_breaker,
            ask = health.http(client and handshake),
            way = options.client_pem,
        })
        w.rand64 = trace.source(math.random)
        w.spans, w.send_spans = build_spans(w.count)
    end
    w.health:use(config.peer_list)
    w.auth = auth.new({ keys = config.keys, sha256 = sha256.hex })
    w.strikes = strikes.new({
        dict = shared.gw_strikes,
        limit = policy.auth.strikes,
        window = policy.auth.strike_window_s,
    })
    w.limiter = limiter.new({
        rate = shared.gw_rate,
        slots = w.slots,
        windows = policy.windows,
        rand = math.random,
    })
    w.breaker = breaker.new({
        dict = shared.gw_breaker,
        rand = math.random,
        conf = policy.breaker,
        on_transition = function(name, to)
            w.count.transitions:inc(1, name, to)
            ngx.log(ngx.WARN, "the breaker of ", name, " is ", to)
        end,
    })
    w.picker = picker.new({
        loads = w.slots,
        breaker = w.breaker,
        well = function(name)
            return w.health:well(name)
        end,
        rand = math.random,
        conf = {
            slow_start = policy.slow_start,
            affinity = policy.affinity,
            regions = config.peers.regions,
            local_region = config.peers.local_region,
        },
    })
    w.retry = retry.new({ dict = shared.gw_breaker, conf = policy.retry })
    w.shed = shed.new({ dict = shared.gw_breaker, slots = w.slots, conf = policy.shed })
    -- After breaker:refresh.
    w.usable = function(peer)
        return w.health:well(peer.name) and w.breaker:peek(peer.name, now_s()) ~= "no"
    end
    return w
end

-- Take a new configuration when the files changed. A bad one is named once, and the old one stays.
local function poll()
    local found = fingerprints()
    if found == seen then
        return
    end
    seen = found
    local config, texts = load_files()
    if not config then
        local err = texts
        if err ~= refused then
            ngx.log(ngx.ERR, "the gateway's new configuration is not used: ", err)
        end
        refused = err
        worker.count.reloads:inc(1, "refused")
        return
    end
    use(config, texts)
    worker = build(config, worker)
    worker.count.reloads:inc(1, "used")
end

local function second(premature)
    local w = worker
    if premature then
        -- The worker drains after a reload: from now on each request hands over what it has counted.
        w.metrics:flush(now_s())
        return
    end
    local now = now_s()
    local ok, err = pcall(function()
        poll()
        w = worker
        local reaped = w.slots:reap(alive)
        if reaped > 0 then
            w.count.reaped:inc(reaped)
        end
        w.limiter:tick()
        w.shed:tick(now)
        w.metrics:flush(now)
    end)
    if not ok then
        w.count.errors:inc(1, "timer")
        ngx.log(ngx.ERR, "the gateway's timer: ", err)
    end
end

local function checks(premature)
    if premature then
        return
    end
    local w = worker
    w.health:tick(w.config.peer_list, w.config.policy.health, ngx.thread.spawn, function(peer, well, reason)
        w.count.checks:inc(1, peer.name, well and "well" or "sick")
        ngx.log(ngx.WARN, "the engine ", peer.name, " is ", well and "well" or ("sick: " .. (reason or "?")))
        -- It has been away. What its breaker remembers is of the time before.
        if well and not w.breaker:reset(peer.name, now_s()) then
            w.breaker:warm_up(peer.name, now_s())
        end
    end)
end

local exporting = false

-- Give the collector what waits. Only timers ever wait for it, and one at a time.
local function export(premature)
    if exporting then
        return
    end
    local w = worker
    local ends = premature or exiting()
    exporting = true
    local ok, err = pcall(function()
        if not ends then
            w.spans:export(now_s, w.send_spans)
            ends = exiting()
        end
        if ends then
            w.spans:last(now_s, w.send_spans)
        end
    end)
    exporting = false
    w.count.spans_waiting:set(w.spans:waiting())
    if not ok then
        w.count.errors:inc(1, "spans")
        ngx.log(ngx.ERR, "the gateway's spans: ", err)
    end
    if ends then
        w.metrics:flush(now_s())
    end
end

-- init_worker_by_lua.
function M.init_worker()
    -- Workers are forked: without this all of them would draw the same numbers.
    local stream = io.open("/dev/urandom", "rb")
    local a, b, c, d = string.byte(stream:read(4), 1, 4)
    stream:close()
    math.randomseed(((a * 256 + b) * 256 + c) * 256 + d)
    worker = build(runtime)
    M.gauges(worker.metrics)
    assert(ngx.timer.every(1, second))
    assert(ngx.timer.every(0.5, checks))
    if worker.spans then
        assert(ngx.timer.every(1, export))
    end
end

-- ------------------------------------------------------------------------------------------------------------- access

local function show_limits(ctx)
    local limits = ctx.limits
    if limits then
        for i = 1, #LIMIT_HEADERS do
            local name = LIMIT_HEADERS[i]
            local value = limits[name]
            if value then
                set_header(name, value)
            end
        end
    end
end

local function answer(ctx, code, body, retry_after)
    ctx.answered = true
    ngx.status = code
    set_header("Content-Type", "application/json")
    set_header("Content-Length", #body)
    if retry_after then
        set_header("Retry-After", retry_after)
    end
    show_limits(ctx)
    ngx.print(body)
    return ngx.exit(ngx.HTTP_OK)
end

local function fail(ctx, word, message, param, retry_after)
    ctx.reason = word
    local code, body = errors.answer(word, message, param)
    return answer(ctx, code, body, retry_after)
end

local function reject(ctx, rejection)
    ctx.reason = rejection.reason
    local code, body = errors.rejection(rejection)
    return answer(ctx, code, body, rejection.retry_after)
end

-- A body with more bytes stays where nginx has it (see gw.view), and is changed in parts of that size.
local LARGE = 65536
local BODY_NAME = "request_body"
local body_name = ffi.new("char[?]", #BODY_NAME)
local body_at, body_length, body_error = ffi.new("char *[1]"), ffi.new("size_t[1]"), ffi.new("char *[1]")

-- The address of the body that nginx has in memory, in body_at, is that of its $request_body, asked for as resty.core does for
-- ngx.var. Returns the length, or nil.
local function find_body()
    local request, name = base.get_request(), BODY_NAME
    if ffi.C.ngx_http_lua_ffi_var_get(request, name, #name, body_name, 0, body_at, body_length, body_error) ~= 0 then
        return nil
    end
    local length = tonumber(body_length[0])
    return length
end

-- The request's body as a string, or as a view when it is said to be a large one; and its length. nil when there is none.
local function body_of(expected)
    ngx.req.read_body()
    if expected and expected > LARGE then
        local length = find_body()
        if length then
            return view.new(body_at[0], length), length
        end
    end
    local body = ngx.req.get_body_data()
    if not body then
        local path = ngx.req.get_body_file()
        body = path and read_file(path)
    end
    return body, body and #body
end

-- Bytes from..to of a body.
local function part_of(body, from, to)
    if type(body) == "string" then
        return sub(body, from, to)
    end
    return view.sub(body, from, to)
end

-- Let the engine have a body with these members changed: see scan.changes.
local function change_body(body, info, wish)
    if type(body) == "string" then
        local edited = scan.edit(body, info, wish)
        if edited ~= body then
            ngx.req.set_body_data(edited)
        end
        return
    end
    local changes = scan.changes(info, wish)
    if #changes == 0 then
        return
    end
    local parts, size = view.parts(body, changes, LARGE)
    ngx.req.init_body(size)
    for i = 1, #parts do
        ngx.req.append_body(parts[i])
    end
    ngx.req.finish_body()
end

-- The largest number of tokens that an answer may have, of what the client says and the tier allows.
local function answer_tokens(info, limits)
    local asked = info.max_tokens
    if info.max_completion_tokens then
        asked = max(asked or 0, info.max_completion_tokens)
    end
    return asked or limits.default_max_tokens, asked
end

-- Is there room for a request? Returns "go", "wait" or "shed", and the load.
local function ask_for_room(w, pool, priority, waiting)
    local now = now_s()
    w.breaker:refresh(now)
    local load = w.shed:load(pool, w.slots, now, w.usable)
    return w.shed:decide(priority, load, pool.name, waiting), load
end

-- Wait for room. verdict, load: what ask_for_room said. Returns nil when there is some, or a rejection.
local function wait_for_room(ctx, w, pool, limits, verdict, load)
    local priority = limits.priority
    local until_then = limits.queue_ms
    local begin = now_s()
    local waited, waiting = 0, false
    while verdict ~= "go" do
        if verdict == "shed" or waited >= until_then then
            if waiting then
                ctx.waiting = nil
                w.shed:leave(priority, pool.name)
            end
            if load == math.huge then
                return { status = 503, type = "unavailable", reason = "unavailable", retry_after = 5 }
            end
            return { status = 503, type = "overloaded", reason = "shed", retry_after = 1 + math.random(0, 2),
                message = "The engines have no room for requests of this priority at the moment. Try again later." }
        end
        if not waiting then
            if not w.shed:enter(priority, pool.name) then
                return { status = 503, type = "overloaded", reason = "queue_full", retry_after = 1 + math.random(0, 2) }
            end
            waiting, ctx.waiting, ctx.waiting_pool = true, priority, pool.name
        end
        ngx.sleep(shed.next_delay(priority, waited, math.random))
        waited = (now_s() - begin) * 1000
        verdict, load = ask_for_room(w, pool, priority, true)
    end
    ctx.waiting = nil
    w.shed:leave(priority, pool.name)
    ctx.waited = now_s() - begin
    w.count.wait:observe(ctx.waited, priority)
    return nil
end

local NO_ENGINE = {
    full = { status = 503, type = "overloaded", reason = "full", retry_after = 1,
        message = "All engines of this model are full. Try again later." },
    breaker = { status = 503, type = "overloaded", reason = "breaker", retry_after = 2,
        message = "The engines of this model are failing. Try again later." },
}

-- Give the request to an engine: note it there before nginx connects.
local function choose(ctx, w, tried)
    local ask = ctx.ask
    ask.tried = tried
    local peer, info = w.picker:take(ctx.pool, ask, now_s())
    if not peer then
        return nil, info
    end
    ctx.peer, ctx.probe, ctx.generation = peer, info.probe, info.generation
    w.count.affinity:inc(1, info.affinity)
    return peer
end

-- What the tenant may take of the limits. Returns the ticket, or nil and a rejection.
local function take_ticket(ctx, w, tenant, reserve)
    local now = now_s()
    local ticket, rejection = w.limiter:admit(tenant, reserve, now)
    if ticket then
        ctx.ticket = ticket
        set_variable("gw_ticket", limiter.encode(ticket))
        w.retry:request(now)
    end
    ctx.limits = w.limiter:headers(tenant, now, new_table(0, 8), ticket)
    return ticket, rejection
end

-- What the engine is chosen by, if prompts with the same beginning are to go to the same engine.
local function affinity_key(w, tenant, pool, body, info)
    local affinity = w.config.policy.affinity
    if affinity.mode ~= "prefix" then
        return nil
    end
    local key = info.prompt_cache_key
    if not key then
        -- A conversation that is shorter than what is compared grows with each turn: its beginning is no name for it yet.
        if not info.prompt_at or info.prompt_bytes < affinity.bytes then
            return nil
        end
        key = part_of(body, info.prompt_at, info.prompt_at + affinity.bytes - 1)
    end
    return tenant.id .. pool.name .. key
end

-- What a request may cost: tokens of the prompt, and what to reserve for all of it.
local function estimate(w, limits, info, each, paid)
    local bytes = (info.prompt_bytes or 0) + (info.context_bytes or 0)
    local prompt = tokens.estimate(bytes, limits.prompt_estimate)
    local answers = (info.prompts or 1) * max(info.n or 1, info.best_of or 1)
    return prompt, tokens.reserve(prompt, paid and each or 0, answers, w.config.policy.token_cost)
end

local function admit(ctx, w, tenant, body)
    local limits = tenant.limits
    local info, sentence, param
    if type(body) == "string" then
        info, sentence, param = scan.scan(body)
    else
        info, sentence, param = scan.scan_view(body)
    end
    if not info then
        return fail(ctx, "bad_request", sentence, param)
    end
    local config = w.config
    local pool = info.model and config.pools_by_name[info.model] or (not info.model and config.default_pool)
    if not info.model and not pool then
        return fail(ctx, "bad_request", "model: expected the name of a model, found none", "model")
    elseif not pool then
        return fail(ctx, "model_not_found", "The model " .. errors.quote(info.model) .. " does not exist.", "model")
    elseif tenant.models and not tenant.models[pool.name] then
        return fail(ctx, "model_not_allowed", nil, "model")
    end
    ctx.pool, ctx.model = pool, pool.name
    local each, asked = answer_tokens(info, limits)
    if each > limits.max_tokens then
        return fail(ctx, "bad_request", string.format(
            "max_tokens: expected at most %d for this API key, found %d", limits.max_tokens, each), "max_tokens")
    end
    local paid = ctx.path ~= "/v1/embeddings"
    local reserve
    ctx.prompt_tokens, reserve = estimate(w, limits, info, each, paid)
    ctx.stream = info.stream
    if info.stream then
        set_variable("gw_connection", "close")
    end

    local verdict, load = ask_for_room(w, pool, limits.priority, false)
    local rejection = verdict ~= "go" and wait_for_room(ctx, w, pool, limits, verdict, load)
    if rejection then
        return reject(ctx, rejection)
    end
    local ticket
    ticket, rejection = take_ticket(ctx, w, tenant, reserve)
    if not ticket then
        return reject(ctx, rejection)
    end
    ctx.ask = { tokens = reserve, affinity_key = affinity_key(w, tenant, pool, body, info) }
    local peer, why = choose(ctx, w, nil)
    if not peer then
        w.limiter:abandon(ticket, now_s())
        w.limiter:release(ticket)
        ctx.ticket = nil
        if NO_ENGINE[why] then
            return reject(ctx, NO_ENGINE[why])
        end
        return fail(ctx, "unavailable", nil, nil, 5)
    end

    ctx.strip = info.stream and not info.include_usage
    if info.model ~= pool.name or (paid and not asked) or ctx.strip then
        change_body(body, info, {
            model = pool.name,
            max_tokens = paid and not asked and each or nil,
            include_usage = ctx.strip,
        })
    end
    -- Small requests say nothing of an engine's time to its first token that large ones do not say, too.
    w.count.own:observe(now_s() - ctx.begin, tenant.tier)
end

-- Note what a request is.
local function begin(ctx, w)
    ctx.w, ctx.begin, ctx.path = w, start_time(), variable("uri")
    local parent = variable("http_traceparent")
    local state = parent and variable("http_tracestate")
    local tracing = w.spans
    local id, span, caller, flags
    parent, state, id, span, caller, flags = trace.continue(parent, state, w.rand64, false, tracing and tracing.decide)
    ctx.trace = id
    if tracing then
        ctx.span, ctx.parent, ctx.flags = span, caller, flags
    end
    set_variable("gw_traceparent", parent)
    if state then
        set_variable("gw_tracestate", state)
    end
    if not variable("http_x_request_id") then
        -- nginx would ask OpenSSL for random bytes, and that the kernel: a tenth of what a small request costs. A request that
        -- begins a trace has its name, so that whoever has the one finds the other.
        set_variable("gateway_request_id", caller and trace.id(w.rand64) or id)
    end
end

-- Who sends it: the tenant; or nil, why not, and the seconds for which the address is blocked.
local function identify(w, address)
    local blocked, seconds = w.strikes:blocked(address, now_s())
    if blocked then
        return nil, "blocked", seconds
    end
    return w.auth:check(variable("http_authorization") or variable("http_x_api_key"))
end

local function access(ctx)
    local w = worker
    begin(ctx, w)
    local path, method = ctx.path, ngx.req.get_method()
    local address = variable("remote_addr")
    local tenant, why, seconds = identify(w, address)
    if seconds then
        return fail(ctx, "too_many_failures", nil, nil, max(1, ceil(seconds)))
    end
    if not tenant then
        -- Who sends no key guesses none: a health check, or a person with a browser.
        if why ~= "missing" then
            w.strikes:strike(address, now_s())
        end
        set_header("WWW-Authenticate", "Bearer")
        return fail(ctx, why .. "_key")
    end
    ctx.tenant = tenant
    if path == "/v1/models" then
        if method ~= "GET" then
            return fail(ctx, "method_not_allowed")
        end
        ctx.reason = "models"
        return answer(ctx, 200, errors.models(w.config.pools, tenant.models, loaded_at))
    elseif not PAID[path] then
        return fail(ctx, "not_found")
    elseif method ~= "POST" then
        return fail(ctx, "method_not_allowed")
    end
    local limits = tenant.limits
    local length = tonumber(variable("http_content_length"))
    if length and length > limits.max_body then
        return fail(ctx, "too_large", string.format(
            "The request body has %d bytes, and %d are allowed for this API key.", length, limits.max_body))
    end
    if variable("http_content_encoding") then
        return fail(ctx, "unsupported_media_type")
    end
    local body
    body, length = body_of(length)
    if not body or length == 0 then
        return fail(ctx, "length_required")
    elseif length > limits.max_body then
        return fail(ctx, "too_large", string.format(
            "The request body has %d bytes, and %d are allowed for this API key.", length, limits.max_body))
    end
    return admit(ctx, w, tenant, body)
end

-- access_by_lua: everything before an engine.
function M.access()
    local ctx = spare[spares]
    if ctx then
        spare[spares], spares = nil, spares - 1
    else
        ctx = new_table(0, 32)
    end
    ngx.ctx = ctx
    return access(ctx)
end

-- ----------------------------------------------------------------------------------------------------------- balancer

-- Did the engine say that it has too much to do? That is no failure of it. A 503 without a word is one.
local function refused_work(code)
    if code == 429 or (code == 503 and variable("upstream_http_x_engine_rejected")) then
        return "rejected"
    end
    return nil
end

-- A try has failed in a way that nginx may make good by another: say so to the breaker, and take it off the engine.
local function failed_try(ctx, w)
    local peer = ctx.peer
    ctx.peer = nil
    w.picker:discharge(peer, ctx.ask.tokens)
    local code = retry.last(variable("upstream_status"))
    local ok, kind
    if code == 503 or code == 429 then
        ok, kind = breaker.verdict(code, refused_work(code))
        w.breaker:back_off(peer.name, 1, now_s())
    else
        ok, kind = breaker.verdict(nil, code == 504 and "timeout" or "connect")
    end
    w.breaker:report(peer.name, ok, kind, now_s(), ctx.probe, ctx.generation)
    if ctx.span then
        ctx.failed = ctx.failed or {}
        ctx.failed[#ctx.failed + 1] = { span = ctx.span, begin = ctx.tried, ends = now_s(), peer = peer.name,
            region = peer.region, address = peer.address, port = peer.port, error = kind,
            status = (code == 503 or code == 429) and code or nil }
    end
    return peer, code
end

-- The next engine is asked under a span of its own. Its headers are those of the last one unless they are made again.
local function next_span(ctx, w)
    ctx.span = trace.child(w.rand64)
    set_variable("gw_traceparent", trace.format(ctx.trace, ctx.span, ctx.flags))
    local ok, err = balancer.recreate_request()
    if not ok then
        ngx.log(ngx.ERR, "the headers of a second try: ", err)
    end
end

-- balancer_by_lua: name the engine of a try.
function M.balancer()
    local ctx = context()
    local w = ctx.w
    ctx.tries = (ctx.tries or 0) + 1
    if ctx.tries > 1 then
        local rules = w.config.policy.retry
        local peer, code = failed_try(ctx, w)
        local ok, why = retry.may_retry({
            upstream_status = variable("upstream_status"),
            bytes_sent_text = variable("upstream_bytes_sent"),
            header_or_body_forwarded = false,
            elapsed_ms = (now_s() - ctx.sent) * 1000,
            max_first_try_ms = rules.max_first_try_ms,
            attempt = ctx.tries - 1,
            max_tries = rules.max_tries,
        })
        -- The budget keeps retries from adding load. Where nobody listened, there was none.
        if ok and why ~= "connect" and not w.retry:take(now_s()) then
            ok, why = false, "budget"
        end
        w.count.retries:inc(1, why)
        if not ok then
            local full = code == 503 or code == 429
            ctx.reason, ctx.instead = full and "overloaded" or "not_retried", full and 503 or 502
            return ngx.exit(502)
        end
        if not choose(ctx, w, { [peer.name] = true }) then
            ctx.reason, ctx.instead = "unavailable", 503
            return ngx.exit(503)
        end
        if ctx.span then
            next_span(ctx, w)
        end
    else
        ctx.sent = now_s()
        if w.config.policy.retry.max_tries > 1 and #ctx.pool.peers > 1 then
            balancer.set_more_tries(1)
        end
    end
    if ctx.span then
        ctx.tried = now_s()
    end
    local peer, stream = ctx.peer, w.config.policy.stream
    -- In the header for operators, too, which is sent before the log phase.
    set_variable("gw_peer", peer.name)
    if peer.sni ~= "" then
        set_variable("gw_sni", peer.sni)
    end
    balancer.set_timeouts(options.connect_s, options.send_s, max(stream.first_byte_s, stream.gap_s))
    local ok, err = balancer.set_current_peer(peer.dial, peer.port)
    if not ok then
        ngx.log(ngx.ERR, "the address of ", peer.name, ": ", err)
        ctx.reason, ctx.instead = "unavailable", 503
        return ngx.exit(503)
    end
end

-- ------------------------------------------------------------------------------------------------------------ filters

local OWN_ERROR = { [502] = "bad_gateway", [503] = "overloaded", [504] = "timeout", [413] = "too_large", [500] = "internal" }

-- header_filter_by_lua.
function M.header_filter()
    local ctx = context()
    if ctx.answered then
        return
    end
    local now_code = status_code()
    local own = ctx.instead
    if not own and now_code >= 400 then
        -- Did an engine answer, or is it nginx itself?
        local times = variable("upstream_header_time")
        own = times == nil or find(times, "%d[^,:]*$") == nil
    end
    if own then
        -- On Debian's nginx ngx.exit in the balancer is always 500.
        local code = ctx.instead or now_code
        local _, body = errors.answer(errors.known[ctx.reason] and ctx.reason or OWN_ERROR[code] or "bad_request")
        ngx.status = code
        set_header("Content-Type", "application/json")
        set_header("Content-Length", #body)
        set_header("Retry-After", code == 503 and 2 or nil)
        ctx.own = body
        ctx.reason = ctx.reason or OWN_ERROR[code]
    end
    show_limits(ctx)
    if ctx.own or not ctx.ticket then
        return
    end
    ctx.code = now_code
    if now_code == 200 and ctx.stream then
        local kind = header["Content-Type"]
        if type(kind) == "string" and find(kind, "text/event-stream", 1, true) then
            ctx.sse = sse.new({ strip_usage = ctx.strip })
            if ctx.strip then
                set_header("Content-Length", nil)
            end
        end
    end
end

-- What has come of an answer that is no stream: its end is enough.
local function keep(ctx, chunk)
    if #chunk >= TAIL then
        ctx.tail = sub(chunk, -TAIL)
    elseif not ctx.tail then
        ctx.tail = chunk
    elseif chunk ~= "" then
        local tail = ctx.tail .. chunk
        ctx.tail = #tail > 2 * TAIL and sub(tail, -TAIL) or tail
    end
end

-- body_filter_by_lua.
function M.body_filter()
    local ctx = context()
    local chunk, last = filter_argument(1), filter_argument(2)
    if ctx.own then
        arg[1] = ctx.own_sent and "" or ctx.own
        ctx.own_sent = true
        arg[2] = true
        return
    end
    local w = ctx.w
    if not w or not ctx.code or ctx.over then
        if ctx.over then
            arg[1] = ""
        end
        return
    end
    if last then
        ctx.complete = true
    end
    if not ctx.sse then
        if ctx.code == 200 then
            keep(ctx, chunk or "")
        end
        return
    end
    local now = now_s()
    local region = ctx.peer and ctx.peer.region or ""
    local out, flags = ctx.sse:feed(chunk or "", last)
    if flags.first then
        ctx.ttft = now - ctx.begin
        w.count.ttft:observe(ctx.ttft, region)
        w.shed:feed(ctx.ttft * 1000, ctx.pool.name)
        if ctx.probe and ctx.peer then
            -- The engine answers: no need to hold the place of the probe until the stream ends.
            w.breaker:report(ctx.peer.name, true, "ok", now, ctx.probe, ctx.generation)
            ctx.probe = nil
        end
    elseif ctx.last_chunk and chunk and chunk ~= "" then
        w.count.itl:observe(now - ctx.last_chunk, region)
    end
    if chunk and chunk ~= "" then
        ctx.last_chunk = now
    end
    if ctx.sse.strip then
        arg[1] = out
    end
    if not last and now - ctx.begin > ctx.tenant.limits.max_stream_seconds then
        -- Nothing else ends a model that babbles: there is always another chunk within the timeout.
        arg[1] = out .. errors.sse_answer("stream_timeout", ctx.sse:inside())
        arg[2] = true
        ctx.over, ctx.reason = true, "stream_timeout"
    end
end

-- ---------------------------------------------------------------------------------------------------------------- log

-- What the engine's part of it says about the engine.
local function verdict(ctx, code)
    if not code then
        local found = retry.last(variable("upstream_status"))
        if ngx.status == 499 then
            return "client"
        end
        return found == 504 and "timeout" or "reset"
    end
    if ctx.sse and not ctx.sse.done and not ctx.over then
        if ctx.sse.failed then
            return "stream_error"
        end
        -- Who ended it? nginx says 499 only before the header; afterwards the connection tells.
        if not ctx.complete then
            return variable("request_completion") == "OK" and "stall" or "client"
        end
        return "stall"
    end
    return nil
end

-- What the request is charged; nil when the engine did no work for it.
local function charge(ctx, w)
    local cost = w.config.policy.token_cost
    local usage
    if ctx.sse then
        usage = ctx.sse.usage
        if usage and ctx.sse.final then
            return tokens.actual(usage, cost), usage
        end
        w.count.usage_missing:inc(1, ctx.sse.done and "no_usage" or "cut")
        return tokens.cut(ctx.prompt_tokens, ctx.sse.chunks, usage, cost), usage
    end
    if ctx.code == 200 then
        usage = ctx.complete and ctx.tail and sse.usage_of(ctx.tail)
        if usage then
            return tokens.actual(usage, cost), usage
        end
        -- It worked, and nobody knows how much: what was reserved.
        w.count.usage_missing:inc(1, ctx.complete and "no_usage" or "cut")
        return nil
    end
    if ctx.code then
        -- The engine said no: the request counts, its tokens do not.
        return 0
    end
    -- No answer came, and the engine may have worked until then.
    return ctx.sent and tokens.cut(ctx.prompt_tokens, 0, nil, cost) or 0
end

local function count_tokens(ctx, w, usage)
    local id = ctx.tenant.id
    if usage then
        w.count.tokens:inc(usage.prompt_tokens or 0, id, "prompt")
        w.count.tokens:inc(usage.completion_tokens or 0, id, "completion")
    end
    w.count.charged:inc(ctx.charged or 0, id)
end

local function settle(ctx, w, now)
    local ticket = ctx.ticket
    local tries = ctx.tries or 0
    -- 503 in the place of an answer: every engine that was tried refused the work, or there was none.
    local never = tries == 0 or (not ctx.code and ctx.instead == 503)
    if never or (not ctx.code and retry.last(variable("upstream_bytes_sent")) == 0) then
        w.limiter:abandon(ticket, now)
        ctx.charged = 0
    else
        local amount, usage = charge(ctx, w)
        w.limiter:settle(ticket, amount, now)
        ctx.charged, ctx.usage = amount or ticket.tokens, usage
        count_tokens(ctx, w, usage)
    end
    w.limiter:release(ticket)
end

-- Take the request off its engine, and say to the breaker what became of it.
local function leave_engine(ctx, w, now)
    local peer = ctx.peer
    w.picker:discharge(peer, ctx.ask.tokens)
    if ctx.tries then
        local cause = verdict(ctx, ctx.code)
        if ctx.code == 503 or ctx.code == 429 then
            cause = refused_work(ctx.code)
            w.breaker:back_off(peer.name, 1, now)
        end
        local ok, kind = breaker.verdict(ctx.code, cause)
        w.breaker:report(peer.name, ok, kind, now, ctx.probe, ctx.generation)
        ctx.kind = kind
    elseif ctx.probe then
        w.breaker:report(peer.name, nil, "client", now, ctx.probe, ctx.generation)
    end
end

local function count_request(ctx, w, now)
    -- The list of models comes from here: it says nothing of the engines, and probes ask for it all the time. Counted as an
    -- answer, it would hide that nobody gets one.
    if ctx.reason == "models" then
        return
    end
    local tenant = ctx.tenant
    local id, tier = tenant and tenant.id or "", tenant and tenant.tier or ""
    w.count.requests:inc(1, id, tier, STATUS[status_code()])
    if ctx.answered then
        w.count.rejected:inc(1, id, ctx.reason or "")
    end
    w.count.seconds:observe(max(0, now - ctx.begin), tier)
end

local function finish(ctx)
    local w, now = ctx.w, now_s()
    if ctx.waiting then
        w.shed:leave(ctx.waiting, ctx.waiting_pool)
    end
    if ctx.peer then
        leave_engine(ctx, w, now)
    end
    if ctx.ticket then
        settle(ctx, w, now)
    end
    count_request(ctx, w, now)
end

local NO_TRIES = {}
-- What an engine's part of a request may have been that is nothing wrong. The others are what breakers call them.
local FINE = { ok = true, client = true }

-- What the engines did: those that failed, and the last one.
local function tries_of(ctx, now)
    local tries, peer = ctx.failed, ctx.peer
    if not (peer and ctx.tries) then
        return tries or NO_TRIES
    end
    tries = tries or {}
    tries[#tries + 1] = { span = ctx.span, begin = ctx.tried, ends = now, peer = peer.name, region = peer.region,
        address = peer.address, port = peer.port, status = ctx.code, error = not FINE[ctx.kind] and ctx.kind or nil }
    return tries
end

-- What went wrong with a request as its client sees it, in a word; nil when nothing did.
local function failure(ctx, code)
    if code >= 500 then
        return ctx.reason or (ctx.code and "engine_error") or OWN_ERROR[code] or "internal"
    elseif ctx.over then
        return ctx.reason
    elseif ctx.kind and code == 200 and not FINE[ctx.kind] then
        -- The answer had begun when the engine failed.
        return ctx.kind
    end
    return nil
end

-- Put the request's spans into the queue for the collector, if it is to have some. Who shows no valid key has none, and so
-- cannot fill the collector with traces of their own.
local function note_spans(ctx, w)
    local tenant = ctx.tenant
    if not tenant then
        return
    end
    local code = status_code()
    local err = failure(ctx, code)
    local sampled = ctx.flags % 2 == 1
    if not w.spans:wanted(sampled, err ~= nil) then
        return
    end
    local now, path, method, usage = now_s(), ctx.path, variable("request_method"), ctx.usage
    local route = (PAID[path] or path == "/v1/models") and path or "/v1/"
    if method ~= "POST" and method ~= "GET" then
        method = "_OTHER"
    end
    w.spans:add({
        trace = ctx.trace, span = trace.child(w.rand64), parent = ctx.parent, sampled = sampled, begin = ctx.begin, ends = now,
        name = method .. " " .. route, method = method, route = route, status = code, tenant = tenant.id, tier = tenant.tier,
        model = ctx.model, reason = ctx.reason ~= "models" and ctx.reason or nil, error = err, stream = ctx.stream,
        input_tokens = usage and usage.prompt_tokens, output_tokens = usage and usage.completion_tokens,
        charged = ctx.charged, ttft = ctx.ttft, waited = ctx.waited, tries = tries_of(ctx, now),
    })
    if exiting() then
        -- The worker drains, and its timer has ended.
        ngx.timer.at(0, export)
    end
end

-- Variables for the access log. They are empty already.
local function describe(ctx)
    if ctx.tenant then
        set_variable("gw_tenant", ctx.tenant.id)
    end
    if ctx.model then
        set_variable("gw_model", ctx.model)
    end
    if ctx.reason then
        set_variable("gw_reason", ctx.reason)
    end
    if ctx.trace then
        set_variable("gw_trace", ctx.trace)
    end
    if ctx.ttft then
        set_variable("gw_ttft", string.format("%.3f", ctx.ttft))
    end
    if ctx.charged then
        set_variable("gw_tokens", ctx.charged)
    end
end

-- Did the log phase of the last request fail?
local unfinished = false

-- log_by_lua: give back what the request holds, however it ended.
function M.log()
    local ctx = context()
    if ctx.w then
        -- nginx notes an error of this phase in its log; the next request counts it. (Under pcall nothing that returns from
        -- finish would be compiled.)
        if unfinished then
            ctx.w.count.errors:inc(1, "log")
        end
        unfinished = true
        finish(ctx)
        if ctx.span then
            note_spans(ctx, ctx.w)
        end
        unfinished = false
        if exiting() then
            ctx.w.metrics:flush(now_s())
        end
        describe(ctx)
        if spares < SPARES_MAX then
            clear_table(ctx)
            spares = spares + 1
            spare[spares] = ctx
        end
        return
    end
    -- The context is gone: an internal redirect.
    local ticket = limiter.decode(variable("gw_ticket"))
    if ticket and worker then
        worker.limiter:settle(ticket, nil, now_s())
        worker.limiter:release(ticket)
    end
end

-- --------------------------------------------------------------------------------------------------- what people look at

-- Values that are read when somebody asks.
function M.gauges(m)
    m:gauge("peer_inflight", "Requests at an engine.", { "peer" }, function(emit)
        for _, peer in ipairs(worker.config.peer_list) do
            emit(worker.slots:value("n:" .. peer.name), peer.name)
        end
    end)
    m:gauge("peer_inflight_tokens", "Tokens of the requests at an engine.", { "peer" }, function(emit)
        for _, peer in ipairs(worker.config.peer_list) do
            emit(worker.slots:value("k:" .. peer.name), peer.name)
        end
    end)
    m:gauge("peer_up", "Does an engine get requests?", { "peer", "state" }, function(emit)
        local now = now_s()
        worker.breaker:refresh(now)
        for _, peer in ipairs(worker.config.peer_list) do
            emit(peer.state == "up" and worker.usable(peer) and 1 or 0, peer.name, peer.state)
        end
    end)
    m:gauge("inflight", "Requests of a tenant.", { "tenant" }, function(emit)
        for _, tenant in ipairs(worker.config.tenants) do
            local used = worker.limiter:use(tenant, now_s())
            if used > 0 then
                emit(used, tenant.id)
            end
        end
    end)
    m:gauge("config_reload_success", "Are the files on disk in use?", nil, function(emit)
        emit(refused and 0 or 1)
    end)
    m:gauge("config_version_info", "The configuration in use.", { "version" }, function(emit)
        emit(1, runtime.id)
    end)
    m:gauge("shm_free_bytes", "Free pages of a shared dict.", { "dict" }, function(emit)
        for name, dict in pairs(ngx.shared) do
            emit(dict:free_space(), name)
        end
    end)
    m:gauge("retry_budget_left", "Second tries that are left.", nil, function(emit)
        emit(worker.retry:left(now_s()))
    end)
end

-- content_by_lua of /metrics.
function M.metrics_page()
    ngx.header["Content-Type"] = "text/plain; version=0.0.4; charset=utf-8"
    ngx.print(worker.metrics:render(now_s()))
end

local function data()
    local w, now = worker, now_s()
    local pools = {}
    w.breaker:refresh(now)
    for i, pool in ipairs(w.config.pools) do
        local peers = {}
        for j, peer in ipairs(pool.peers) do
            local state, open_until, trips = w.breaker:state(peer.name, now)
            local since = w.breaker:warm_since(peer.name, now)
            peers[j] = {
                name = peer.name, address = peer.address, port = peer.port, region = peer.region,
                weight = peer.weight, state = peer.state, well = w.health:well(peer.name),
                reason = w.health:reason(peer.name), breaker = state, breaker_until = open_until, trips = trips,
                share = picker.warmth(w.config.policy.slow_start, since and now - since),
                inflight = w.slots:value("n:" .. peer.name), max_inflight = peer.max_inflight,
                tokens = w.slots:value("k:" .. peer.name), capacity_tokens = peer.capacity_tokens,
            }
        end
        pools[i] = { name = pool.name, aliases = pool.aliases, default = pool.default,
            context_tokens = pool.context_tokens, peers = peers }
    end
    local tenants = {}
    for i, tenant in ipairs(w.config.tenants) do
        local limits = tenant.limits
        local flying, _, requests, tpm, tpd = w.limiter:use(tenant, now)
        tenants[i] = {
            id = tenant.id, tier = tenant.tier, priority = limits.priority,
            concurrency = { used = flying, limit = limits.concurrency },
            rpm = { used = requests, limit = limits.rpm },
            tpm = { used = tpm, limit = limits.tpm },
            tpd = { used = tpd, limit = limits.tpd },
        }
    end
    return {
        now = now, started_at = started_at, node = ngx.var.hostname, refresh_s = 5,
        config = { id = runtime.id, loaded_at = loaded_at, error = refused },
        workers = { running = #w.metrics:workers(), expected = ngx.worker.count() },
        warnings = runtime.warnings, pools = pools, tenants = tenants,
    }
end

-- content_by_lua of the status page, for browsers and for programs.
function M.status_page()
    ngx.header["Content-Type"] = "text/html; charset=utf-8"
    ngx.header["Content-Security-Policy"] = status.CSP
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(status.page(data()))
end

function M.status_json()
    ngx.header["Content-Type"] = "application/json"
    ngx.print(status.json(data()))
end

return M
