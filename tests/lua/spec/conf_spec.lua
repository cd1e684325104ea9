-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson.safe")
local conf = require("gw.conf")

local ID = string.rep("0a", 32)

local function key(n)
    return string.format("%064x", n)
end

local function tier()
    return {
        rpm = 60, burst_rps = 5, tpm = 60000, tpd = 1000000, concurrency = 4, max_tokens = 2048,
        default_max_tokens = 512, max_body = 262144, max_stream_seconds = 600, priority = "batch", queue_ms = 0,
        prompt_estimate = "typical",
    }
end

local function policy()
    return {
        version = 1,
        id = ID,
        tiers = { free = tier(), plus = tier(), pro = tier() },
        tenants = {
            { id = "acme", tier = "plus", keys_sha256 = { key(1), key(2) }, overrides = { tpm = 4000000 }, models = {} },
            { id = "globex", tier = "free", keys_sha256 = { key(3) }, models = { "deepseek-r1" } },
        },
        token_cost = { prompt = 1, cached_prompt = 0.1, completion = 1 },
        windows = { requests_s = 60, tokens_s = 60, day_s = 86400, buckets = 60 },
        breaker = {
            window_s = 10, min_requests = 20, error_rate = 0.5, consecutive = 5, open_base_s = 5, open_max_s = 120,
            half_open_probes = 2, success_needed = 3,
        },
        slow_start = { window_s = 60, min_percent = 10, aggression = 1 },
        retry = { budget_percent = 10, floor = 3, max_tries = 2, max_first_try_ms = 2000 },
        affinity = { mode = "prefix", bytes = 4096, max_load_factor = 1.25 },
        shed = {
            thresholds = { batch = 0.7, standard = 0.9, premium = 1 },
            max_waiters = { batch = 64, standard = 256, premium = 512 },
            ttft_target_ms = 3000,
        },
        health = { path = "/health", interval_s = 3, timeout_ms = 2000, fall = 3, rise = 2 },
        stream = { first_byte_s = 120, gap_s = 60 },
        auth = { strikes = 20, strike_window_s = 60 },
        operator_networks = { "10.0.0.0/8", "::1" },
    }
end

local function peer(name, address, changes)
    local made = {
        name = name, address = address, port = 8443, weight = 2, capacity_tokens = 400000, max_inflight = 256,
        region = "eu", state = "up", sni = "",
    }
    for field, value in pairs(changes or {}) do
        made[field] = value
    end
    return made
end

local function peers()
    return {
        version = 1,
        id = ID,
        local_region = "eu",
        regions = { eu = { priority = 0 }, us = { priority = 1 } },
        pools = {
            {
                name = "deepseek-r1", aliases = { "r1", "deepseek-ai/DeepSeek-R1:latest" }, default = true,
                context_tokens = 131072,
                peers = { peer("gpu1", "10.0.0.1"), peer("gpu2", "fd00::2", { region = "us", state = "drain" }) },
            },
            { name = "embed", aliases = {}, default = false, context_tokens = 8192, peers = { peer("gpu3", "10.0.0.3") } },
        },
    }
end

-- Put value at path ("tiers.pro.rpm", "tenants.1.id"; numbers count from 1 as in Lua); "gone" removes the member.
local GONE = {}
local function put(root, path, value)
    local at, last = root, nil
    for step in string.gmatch(path, "[^.]+") do
        if last ~= nil then
            at = at[last]
        end
        last = tonumber(step) or step
    end
    if value == GONE then
        at[last] = nil
    else
        at[last] = value
    end
    return root
end

-- What a bad value must be answered with: exactly one sentence, that begins with the path. Others may follow from it: count.
local function refuses(check, root, where, words, count)
    local out = check(root)
    assert.are.equal(count or 1, #out, table.concat(out, "\n"))
    assert.are.equal(where .. ":", string.sub(out[1], 1, #where + 1), out[1])
    if words then
        assert.is_truthy(string.find(out[1], words, 1, true), out[1])
    end
end

describe("a good configuration", function()
    it("passes", function()
        assert.are.same({}, conf.check_policy(policy()))
        assert.are.same({}, conf.check_peers(peers()))
        assert.are.same({}, conf.check_both(policy(), peers()))
    end)

    it("passes after a trip through JSON, where an empty object and an empty list look alike", function()
        local text = cjson.encode(policy())
        assert.are.same({}, conf.check_policy(cjson.decode(text)))
        local empty = policy()
        empty.tenants, empty.operator_networks = {}, {}
        text = cjson.encode(empty)
        assert.is_truthy(text:find('"tenants":{}', 1, true))
        assert.are.same({}, conf.check_policy(cjson.decode(text)))
        assert.are.same({}, conf.check_policy(cjson.decode((text:gsub("{}", "[]")))))
    end)

    it("may leave out some fields", function()
        local small, few = policy(), peers()
        small.tenants[1].overrides, small.tenants[1].models = nil, nil
        few.pools[1].aliases, few.pools[1].default, few.pools[1].peers[1].sni = nil, nil, nil
        assert.are.same({}, conf.check_policy(small))
        assert.are.same({}, conf.check_peers(few))
        local runtime = conf.build(small, few)
        assert.is_nil(runtime.default_pool)
        assert.is_nil(runtime.tenants_by_id.acme.models)
        assert.are.equal("", runtime.peer_list[1].sni)
        assert.are.same({}, runtime.pools[1].aliases)
        assert.is_false(runtime.pools[1].default)
        assert.are.same({}, conf.check_both(put(policy(), "tenants.2.models", GONE), few))
    end)

    it("may use the whole range of a field", function()
        for _, case in ipairs({
            { "tiers.pro.rpm", 0 }, { "tiers.pro.rpm", 10000000 }, { "breaker.error_rate", 1 }, { "tiers.pro.tpm", 0 },
            { "tiers.pro.max_body", 16777216 }, { "retry.floor", 0 }, { "slow_start.window_s", 0 },
            { "shed.thresholds.batch", 0.9 }, { "breaker.open_base_s", 120 },
            { "tiers.pro.default_max_tokens", 2048 }, { "token_cost.cached_prompt", 1 }, { "tiers.pro.tpm", 513 },
            { "tenants.1.id", string.rep("a", 64) }, { "auth.strikes", 0 },
        }) do
            assert.are.same({}, conf.check_policy(put(policy(), case[1], case[2])), case[1])
        end
        for _, case in ipairs({
            { "pools.1.peers.1.port", 65535 }, { "pools.1.peers.1.weight", 256 },
            { "pools.1.peers.1.sni", "gpu-1.example.net" }, { "pools.1.peers.1.address", "2001:db8::10.0.0.1" },
        }) do
            assert.are.same({}, conf.check_peers(put(peers(), case[1], case[2])), case[1])
        end
    end)
end)

-- {what to change, the bad value, the path that must be named, words of the message, number of sentences when not 1}
local BAD_POLICY = {
    { "version", 2, "policy.version", "expected 1, found 2" },
    { "version", "1", "policy.version", 'found "1"' },
    { "version", GONE, "policy.version", "missing, expected" },
    { "id", GONE, "policy.id", "missing, expected" },
    { "id", string.rep("0A", 32), "policy.id", "64 lower-case hexadecimal digits" },
    { "id", string.rep("0", 63), "policy.id" },
    { "tiers", GONE, "policy.tiers", "missing, expected", 3 },
    { "tiers", {}, "policy.tiers", "an object with at least 1 member", 3 },
    { "tiers", { tier() }, "policy.tiers", "found a list", 3 },
    { "tiers.pro", 7, "policy.tiers.pro", "expected an object, found 7" },
    { "tiers.pro.rpm", "many", "policy.tiers.pro.rpm", 'expected a whole number from 0 to 10000000, found "many"' },
    { "tiers.pro.rpm", GONE, "policy.tiers.pro.rpm", "missing, expected" },
    { "tiers.pro.rpm", -1, "policy.tiers.pro.rpm", "found -1" },
    { "tiers.pro.rpm", 1.5, "policy.tiers.pro.rpm", "found 1.5" },
    { "tiers.pro.rpm", 10000001, "policy.tiers.pro.rpm" },
    { "tiers.pro.rpm", 0 / 0, "policy.tiers.pro.rpm" },
    { "tiers.pro.rpm", math.huge, "policy.tiers.pro.rpm" },
    { "tiers.pro.rpm", cjson.null, "policy.tiers.pro.rpm", "found null" },
    { "tiers.pro.rpm", true, "policy.tiers.pro.rpm", "found true" },
    { "tiers.pro.rpm", {}, "policy.tiers.pro.rpm", "found an empty list or object" },
    { "tiers.pro.burst_rps", 1000001, "policy.tiers.pro.burst_rps" },
    { "tiers.pro.tpm", "60000", "policy.tiers.pro.tpm" },
    { "tiers.pro.tpd", GONE, "policy.tiers.pro.tpd", "missing, expected" },
    { "tiers.pro.concurrency", 0.5, "policy.tiers.pro.concurrency" },
    { "tiers.pro.max_tokens", 0, "policy.tiers.pro.max_tokens", "from 1 to", 2 },
    { "tiers.pro.default_max_tokens", 0, "policy.tiers.pro.default_max_tokens" },
    {
        "tiers.pro.default_max_tokens", 2049, "policy.tiers.pro.default_max_tokens",
        "2049 is more than max_tokens, which is 2048",
    },
    { "tiers.pro.tpm", 512, "policy.tiers.pro.tpm", "512 is not more than default_max_tokens, which is 512" },
    { "tiers.pro.tpd", 100, "policy.tiers.pro.tpd", "100 is not more than default_max_tokens" },
    { "tiers.pro.max_body", 16777217, "policy.tiers.pro.max_body" },
    { "tiers.pro.max_stream_seconds", 0, "policy.tiers.pro.max_stream_seconds" },
    { "tiers.pro.priority", "urgent", "policy.tiers.pro.priority", "one of batch, standard, premium" },
    { "tiers.pro.queue_ms", -1, "policy.tiers.pro.queue_ms" },
    { "tiers.pro.prompt_estimate", "exact", "policy.tiers.pro.prompt_estimate", "one of typical, bound" },
    { "tiers.pro.rps", 3, "policy.tiers.pro.rps", "unknown field" },
    { "tiers.p o", tier(), 'policy.tiers["p o"]', "expected a name" },
    { "tenants", GONE, "policy.tenants", "missing, expected" },
    { "tenants", { acme = {} }, "policy.tenants", "expected a list" },
    { "tenants.1", "acme", "policy.tenants[0]", "expected an object" },
    { "tenants.1.id", "a:b", "policy.tenants[0].id", "a name of 1 to 64" },
    { "tenants.1.id", "", "policy.tenants[0].id" },
    { "tenants.1.id", string.rep("a", 65), "policy.tenants[0].id" },
    { "tenants.2.id", "acme", "policy.tenants[1].id", "is the id of tenants[0] too" },
    { "tenants.2.tier", "gold", "policy.tenants[1].tier", 'no tier has the name "gold"' },
    { "tenants.2.tier", GONE, "policy.tenants[1].tier", "missing, expected" },
    { "tenants.1.keys_sha256.2", string.rep("F", 64), "policy.tenants[0].keys_sha256[1]", "a string of 64 bytes" },
    {
        "tenants.1.keys_sha256.2", key(1), "policy.tenants[0].keys_sha256[1]",
        "the same key is at policy.tenants[0].keys_sha256[0]",
    },
    {
        "tenants.2.keys_sha256.1", key(2), "policy.tenants[1].keys_sha256[0]",
        "the same key is at policy.tenants[0].keys_sha256[1]",
    },
    { "tenants.1.keys_sha256", key(1), "policy.tenants[0].keys_sha256", "expected a list" },
    { "tenants.1.overrides.rpm", "9", "policy.tenants[0].overrides.rpm" },
    { "tenants.1.overrides.weight", 9, "policy.tenants[0].overrides.weight", "unknown field" },
    {
        "tenants.1.overrides.max_tokens", 256, "policy.tenants[0].overrides.default_max_tokens",
        "512 is more than max_tokens, which is 256",
    },
    { "tenants.1.overrides.tpd", 512, "policy.tenants[0].overrides.tpd", "is not more than default_max_tokens" },
    { "tenants.2.models", { "a b" }, "policy.tenants[1].models[0]", "a model name" },
    { "tenants.2.models", { "m", "m" }, "policy.tenants[1].models[1]", '"m" is there already at [0]' },
    { "tenants.1.key", "x", "policy.tenants[0].key", "unknown field" },
    { "token_cost.prompt", -0.1, "policy.token_cost.prompt", "from 0 to 1000", 2 },
    { "token_cost.cached_prompt", 2, "policy.token_cost.cached_prompt", "2 is more than prompt, which is 1" },
    { "token_cost.cached_prompt", GONE, "policy.token_cost.cached_prompt", "missing, expected" },
    { "token_cost", GONE, "policy.token_cost", "missing, expected an object" },
    { "token_cost.completion", "1", "policy.token_cost.completion" },
    { "windows.requests_s", 0, "policy.windows.requests_s" },
    { "windows.tokens_s", 86401, "policy.windows.tokens_s" },
    { "windows.day_s", 0.5, "policy.windows.day_s" },
    { "windows.buckets", 1441, "policy.windows.buckets" },
    { "windows.buckets", 1, "policy.windows.buckets" },
    { "breaker", "on", "policy.breaker", "expected an object" },
    { "breaker.window_s", 0, "policy.breaker.window_s" },
    { "breaker.min_requests", 0, "policy.breaker.min_requests" },
    { "breaker.error_rate", 1.01, "policy.breaker.error_rate", "a number above 0 and up to 1" },
    { "breaker.error_rate", 0, "policy.breaker.error_rate" },
    { "breaker.error_rate", 0 / 0, "policy.breaker.error_rate" },
    { "breaker.consecutive", -1, "policy.breaker.consecutive" },
    { "breaker.open_base_s", 121, "policy.breaker.open_max_s", "120 is less than open_base_s, which is 121" },
    { "breaker.open_max_s", 86401, "policy.breaker.open_max_s" },
    { "breaker.half_open_probes", 0, "policy.breaker.half_open_probes" },
    { "breaker.success_needed", 0, "policy.breaker.success_needed" },
    { "slow_start.window_s", -1, "policy.slow_start.window_s" },
    { "slow_start.min_percent", 0, "policy.slow_start.min_percent" },
    { "slow_start.aggression", 0, "policy.slow_start.aggression" },
    { "retry.budget_percent", 101, "policy.retry.budget_percent" },
    { "retry.floor", -1, "policy.retry.floor" },
    { "retry.max_tries", 0, "policy.retry.max_tries" },
    { "retry.max_first_try_ms", "2s", "policy.retry.max_first_try_ms" },
    { "affinity.mode", "on", "policy.affinity.mode", "one of off, prefix" },
    { "affinity.bytes", 63, "policy.affinity.bytes" },
    { "affinity.max_load_factor", 0.9, "policy.affinity.max_load_factor" },
    { "shed.thresholds.batch", 0.95, "policy.shed.thresholds.standard", "less than that of batch, which is 0.95" },
    { "shed.thresholds.premium", 0.8, "policy.shed.thresholds.premium", "less than that of standard, which is 0.9" },
    { "shed.thresholds.premium", 1.1, "policy.shed.thresholds.premium" },
    { "shed.thresholds.vip", 1, "policy.shed.thresholds.vip", "unknown field" },
    { "shed.max_waiters.batch", -1, "policy.shed.max_waiters.batch" },
    { "shed.ttft_target_ms", 0.5, "policy.shed.ttft_target_ms" },
    { "health.path", "health", "policy.health.path", "a path that begins with /" },
    { "health.path", "/health HTTP/1.1\r\nX: y", "policy.health.path" },
    { "health.interval_s", 0, "policy.health.interval_s" },
    { "health.timeout_ms", 9, "policy.health.timeout_ms" },
    { "health.fall", 0, "policy.health.fall" },
    { "health.rise", 101, "policy.health.rise" },
    { "stream.first_byte_s", 0, "policy.stream.first_byte_s" },
    { "stream.gap_s", GONE, "policy.stream.gap_s", "missing, expected" },
    { "stream.gap", 5, "policy.stream.gap", "unknown field" },
    { "auth.strikes", -1, "policy.auth.strikes" },
    { "auth.strike_window_s", 0, "policy.auth.strike_window_s" },
    { "operator_networks", "10.0.0.0/8", "policy.operator_networks", "expected a list" },
    { "operator_networks.1", "10.1.0.0/8", "policy.operator_networks[0]", "without bits behind its prefix" },
    { "operator_networks.2", "10.0.0.0/8", "policy.operator_networks[1]", "is there already at [0]" },
    { "operator_networks.1", "10.0.0.0/33", "policy.operator_networks[0]" },
    { "operator_networks.1", "localhost", "policy.operator_networks[0]" },
    { "limits", {}, "policy.limits", "unknown field" },
    { "a\nb", 1, 'policy["a\\x0ab"]', "unknown field" },
}

local BAD_PEERS = {
    { "version", 0, "peers.version" },
    { "id", 5, "peers.id" },
    { "local_region", "asia", "peers.local_region", 'no region has the name "asia"' },
    { "local_region", GONE, "peers.local_region", "missing, expected" },
    { "regions.eu.priority", -1, "peers.regions.eu.priority" },
    { "regions.eu.weight", 1, "peers.regions.eu.weight", "unknown field" },
    { "regions", { { priority = 0 } }, "peers.regions", "found a list", 5 },
    { "pools", {}, "peers.pools", "a list of at least 1" },
    { "pools", GONE, "peers.pools", "missing, expected" },
    { "pools.1.name", "a b", "peers.pools[0].name", "a model name" },
    { "pools.2.name", "deepseek-r1", "peers.pools[1].name", "is used at peers.pools[0].name" },
    { "pools.2.name", "r1", "peers.pools[1].name", "is used at peers.pools[0].aliases[0]" },
    { "pools.2.aliases", { "r1" }, "peers.pools[1].aliases[0]", "peers.pools[0].aliases[0]" },
    { "pools.1.aliases", { "deepseek-r1" }, "peers.pools[0].aliases[0]", "peers.pools[0].name" },
    { "pools.1.aliases", { "" }, "peers.pools[0].aliases[0]" },
    { "pools.2.default", true, "peers.pools[1].default", "peers.pools[0] is the default already" },
    { "pools.2.default", "true", "peers.pools[1].default", "true or false" },
    { "pools.1.context_tokens", 0, "peers.pools[0].context_tokens" },
    { "pools.1.context_tokens", GONE, "peers.pools[0].context_tokens", "missing, expected" },
    { "pools.1.model", "x", "peers.pools[0].model", "unknown field" },
    { "pools.1.peers.1.name", "gpu:1", "peers.pools[0].peers[0].name" },
    {
        "pools.1.peers.2.name", "gpu1", "peers.pools[0].peers[1].name",
        'peers.pools[0].peers[0] has the name "gpu1" too',
    },
    { "pools.2.peers.1.name", "gpu1", "peers.pools[1].peers[0].address", "peers.pools[0].peers[0] is the same engine" },
    { "pools.1.peers.1.address", "gpu1.example.net", "peers.pools[0].peers[0].address", "an IP address" },
    { "pools.1.peers.1.address", "10.0.0.256", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "10.0.0.01", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "10.0.0", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "[fd00::1]", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "fd00::1::2", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "fe80::1%eth0", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.address", "1:2:3:4:5:6:7", "peers.pools[0].peers[0].address" },
    { "pools.1.peers.1.port", 0, "peers.pools[0].peers[0].port" },
    { "pools.1.peers.1.port", 65536, "peers.pools[0].peers[0].port" },
    { "pools.1.peers.1.port", "8443", "peers.pools[0].peers[0].port" },
    { "pools.1.peers.1.weight", 0, "peers.pools[0].peers[0].weight" },
    { "pools.1.peers.1.weight", 2.5, "peers.pools[0].peers[0].weight" },
    { "pools.1.peers.1.capacity_tokens", 0, "peers.pools[0].peers[0].capacity_tokens" },
    { "pools.1.peers.1.max_inflight", GONE, "peers.pools[0].peers[0].max_inflight", "missing, expected" },
    { "pools.1.peers.1.region", "mars", "peers.pools[0].peers[0].region", 'no region has the name "mars"' },
    { "pools.1.peers.1.state", "off", "peers.pools[0].peers[0].state", "one of up, drain, down" },
    { "pools.1.peers.1.sni", "-bad", "peers.pools[0].peers[0].sni" },
    { "pools.1.peers.1.sni", "a..b", "peers.pools[0].peers[0].sni" },
    { "pools.1.peers.1.sni", "a b", "peers.pools[0].peers[0].sni" },
    { "pools.1.peers.1.healthy", true, "peers.pools[0].peers[0].healthy", "unknown field" },
    { "pools.1.peers", {}, "peers.pools[0].peers", "a list of at least 1" },
    { "pools.1.peers.1.address", "0.0.0.0", "peers.pools[0].peers[0].address" },
    {
        "pools.1.peers.2.address", "10.0.0.1", "peers.pools[0].peers[1].address",
        "peers.pools[0].peers[0] has this address",
    },
    { "name", "x", "peers.name", "unknown field" },
}

describe("a bad policy", function()
    for i, case in ipairs(BAD_POLICY) do
        it(string.format("%d: %s", i, case[3]), function()
            refuses(conf.check_policy, put(policy(), case[1], case[2]), case[3], case[4], case[5])
        end)
    end

    it("is answered with every fault at once, in an order that stays", function()
        local bad = policy()
        bad.tiers.pro.rpm, bad.tiers.free.tpm, bad.health.fall, bad.zeta, bad.alpha = "x", nil, 0, 1, 1
        local out = conf.check_policy(bad)
        for i = 1, #out do
            out[i] = string.match(out[i], "^[^:]*")
        end
        assert.are.same({
            "policy.tiers.free.tpm", "policy.tiers.pro.rpm", "policy.health.fall", "policy.alpha", "policy.zeta",
        }, out)
    end)

    it("that is no object is refused, whatever it is", function()
        for _, value in ipairs({ "x", 1, true, { 1, 2 }, cjson.null }) do
            refuses(conf.check_policy, value, "policy", "expected an object")
            refuses(conf.check_peers, value, "peers", "expected an object")
        end
        for _, check in ipairs({ conf.check_policy, conf.check_peers }) do
            assert.are.equal(1, #check(nil))
        end
    end)

    it("never has a key in its sentences", function()
        local bad = policy()
        bad.tenants[1].keys_sha256[1] = "sk-very-secret"
        local out = conf.check_policy(bad)
        assert.are.equal(1, #out)
        assert.is_nil(string.find(out[1], "secret", 1, true))
        assert.is_truthy(string.find(out[1], "a string of 14 bytes", 1, true))
    end)

    it("cannot put control characters or long texts into a log", function()
        local out = conf.check_policy(put(policy(), "tiers.pro.priority", "a\n\27[31m" .. string.rep("b", 5000)))
        assert.is_nil(string.find(out[1], "%c"))
        assert.is_true(#out[1] < 300)
    end)

    it("is not a list with holes or with names", function()
        local bad = policy()
        bad.tenants[5] = bad.tenants[2]
        bad.tenants[2] = nil
        assert.is_true(#conf.check_policy(bad) > 0)
        bad = policy()
        bad.tenants.extra = bad.tenants[1]
        refuses(conf.check_policy, bad, "policy.tenants", "expected a list")
    end)
end)

describe("bad peers", function()
    for i, case in ipairs(BAD_PEERS) do
        it(string.format("%d: %s", i, case[3]), function()
            refuses(conf.check_peers, put(peers(), case[1], case[2]), case[3], case[4], case[5])
        end)
    end

    it("have two identities at one address and port, however it is spelled", function()
        local bad = peers()
        bad.pools[1].peers[2].sni = "a.example.net"
        bad.pools[2].peers[1] = peer("gpu9", "FD00:0:0::0002", { sni = "b.example.net" })
        refuses(conf.check_peers, bad, "peers.pools[1].peers[0].sni", "peers.pools[0].peers[1]")
        bad.pools[2].peers[1].sni = "A.example.net"
        assert.are.same({}, conf.check_peers(bad))
        bad.pools[2].peers[1].sni, bad.pools[2].peers[1].port = "b.example.net", 8444
        assert.are.same({}, conf.check_peers(bad))
    end)

    it("are one engine in two pools only when it is the same there", function()
        local both = peers()
        both.pools[2].peers[1] = peer("gpu1", "10.0.0.1")
        assert.are.same({}, conf.check_peers(both))
        for field, value in pairs({ weight = 3, state = "drain", max_inflight = 1, region = "us", capacity_tokens = 5 }) do
            both.pools[2].peers[1] = peer("gpu1", "10.0.0.1", { [field] = value })
            refuses(conf.check_peers, both, "peers.pools[1].peers[0]." .. field, "is the same engine")
        end
    end)
end)

describe("both together", function()
    it("must know the models of the tenants", function()
        local bad = policy()
        bad.tenants[2].models = { "r1", "gpt" }
        refuses(function(value)
            return conf.check_both(value, peers())
        end, bad, "policy.tenants[1].models[1]", 'no pool has the name or alias "gpt"')
    end)
end)

describe("addresses", function()
    it("are read as the standards have them", function()
        local zero = string.rep("\0", 15)
        assert.are.equal("\10\0\0\1", conf.address("10.0.0.1"))
        assert.are.equal("\255\255\255\255", conf.address("255.255.255.255"))
        assert.are.equal(zero .. "\0", conf.address("::"))
        assert.are.equal(zero .. "\1", conf.address("::1"))
        assert.are.equal("\32\1\13\184" .. string.rep("\0", 12), conf.address("2001:DB8::"))
        assert.are.equal("\0\1\0\2\0\3\0\4\0\5\0\6\0\7\171\205", conf.address("1:2:3:4:5:6:7:abcd"))
        assert.are.equal(string.rep("\0", 10) .. "\255\255\1\2\3\4", conf.address("::ffff:1.2.3.4"))
        for _, bad in ipairs({
            "", "1", ":", ":::", "1.2.3.4.5", "1.2.3.-4",
            "256.2.3.4", "1.256.3.4", "1.2.256.4", "1.2.3.256",
            " 1.2.3.4", "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::8", "12345::",
            "g::", "1.2.3.4::", "::1.2.3", "1:", ":1", "1::2:", "0x1.2.3.4", "1.2.3.4\n", "1::2::3", "01.2.3.4",
            "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3.4:5",
        }) do
            assert.is_nil(conf.address(bad), bad)
        end
    end)

    it("are within a network or not", function()
        local function inside(network, address)
            return conf.inside({ conf.network(network) }, address)
        end
        assert.is_true(inside("10.0.0.0/8", "10.255.1.2"))
        assert.is_false(inside("10.0.0.0/8", "11.0.0.0"))
        assert.is_true(inside("10.4.0.0/14", "10.7.255.255"))
        assert.is_false(inside("10.4.0.0/14", "10.8.0.0"))
        assert.is_true(inside("192.0.2.1", "192.0.2.1"))
        assert.is_false(inside("192.0.2.1", "192.0.2.0"))
        assert.is_true(inside("0.0.0.0/0", "203.0.113.9"))
        assert.is_false(inside("0.0.0.0/0", "2001:db8::1"))
        assert.is_true(inside("2001:db8::/33", "2001:db8:7fff::1"))
        assert.is_false(inside("2001:db8::/33", "2001:db8:8000::1"))
        assert.is_true(inside("10.0.0.0/8", "::ffff:10.0.0.1"))
        assert.is_true(inside("::ffff:10.0.0.0/104", "10.0.0.1"))
        assert.is_true(inside("10.0.0.2/31", "10.0.0.3"))
        assert.is_false(inside("10.0.0.2/31", "10.0.0.4"))
        assert.is_true(inside("fd00::/8", "fdff::1"))
        assert.is_false(inside("10.0.0.1/32", "10.0.0.0"))
        assert.is_false(inside("0.0.0.0/0", "unix:"))
        assert.is_false(inside("0.0.0.0/0", nil))
        assert.is_false(conf.inside({}, "10.0.0.1"))
        for _, bad in ipairs({
            "10.0.0.0/", "10.0.0.0/33", "::/129", "/8", "10.0.0.0/-1", "10.0.0.0/8/8", "x/8", "10.1.2.3/8", "fd00::1/64",
        }) do
            assert.is_nil(conf.network(bad), bad)
        end
    end)
end)

describe("build", function()
    it("merges the overrides into the limits of the tier, for this tenant alone", function()
        local runtime = conf.build(policy(), peers())
        local acme, globex = runtime.keys[key(2)], runtime.keys[key(3)]
        assert.are.equal("acme", acme.id)
        assert.are.equal(acme, runtime.keys[key(1)])
        assert.are.equal(acme, runtime.tenants_by_id.acme)
        assert.are.equal(acme, runtime.tenants[1])
        assert.are.same({ 4000000, 60 }, { acme.limits.tpm, acme.limits.rpm })
        assert.are.equal(60000, runtime.tiers.plus.tpm)
        assert.are.same(tier(), globex.limits)
        assert.is_nil(runtime.keys[key(4)])
    end)

    it("finds pools by name and alias, and the models of a tenant by either", function()
        local runtime = conf.build(policy(), peers())
        assert.are.equal(runtime.pools[1], runtime.pools_by_name["deepseek-r1"])
        assert.are.equal(runtime.pools[1], runtime.pools_by_name.r1)
        assert.are.equal(runtime.pools[1], runtime.default_pool)
        assert.are.equal(runtime.pools[2], runtime.pools_by_name.embed)
        assert.is_nil(runtime.tenants_by_id.acme.models)
        assert.are.same({ ["deepseek-r1"] = true, r1 = true, ["deepseek-ai/DeepSeek-R1:latest"] = true },
            runtime.tenants_by_id.globex.models)
    end)

    it("has each engine once, and writes its address as nginx wants it", function()
        local given = peers()
        given.pools[2].peers[2] = peer("gpu1", "10.0.0.1")
        local runtime = conf.build(policy(), given)
        assert.are.equal(3, #runtime.peer_list)
        assert.are.equal(runtime.peer_list[1], runtime.peers_by_name.gpu1)
        assert.are.equal("gpu1", runtime.pools_by_name.embed.peers[2].name)
        assert.are.equal("10.0.0.1", runtime.peers_by_name.gpu1.dial)
        assert.are.equal("[fd00::2]", runtime.peers_by_name.gpu2.dial)
        assert.are.equal("fd00::2", runtime.peers_by_name.gpu2.address)
    end)

    it("does not share tables with what it was made from", function()
        local given, hosts = policy(), peers()
        local runtime = conf.build(given, hosts)
        given.tiers.plus.rpm, given.breaker.consecutive, hosts.pools[1].peers[1].weight = 1, 99, 99
        assert.are.same({ 60, 5, 2 },
            { runtime.tenants_by_id.acme.limits.rpm, runtime.policy.breaker.consecutive, runtime.peers_by_name.gpu1.weight })
        assert.are.equal("0a0a0a0a0a0a-0a0a0a0a0a0a", runtime.id)
        assert.are.equal(ID, runtime.policy_id)
    end)

    it("warns of what is good but perhaps not meant", function()
        assert.are.same({}, conf.build(policy(), peers()).warnings)
        local given, hosts = policy(), peers()
        given.tenants[1].keys_sha256 = {}
        hosts.pools[2].peers[1].state = "drain"
        assert.are.same({ "Pool embed has no engine in state up.", "Tenant acme has no key." },
            conf.build(given, hosts).warnings)
    end)

    it("parses the networks of the operators", function()
        local runtime = conf.build(policy(), peers())
        assert.is_true(conf.inside(runtime.operator_networks, "10.4.5.6"))
        assert.is_true(conf.inside(runtime.operator_networks, "::1"))
        assert.is_false(conf.inside(runtime.operator_networks, "192.0.2.1"))
    end)
end)

describe("load", function()
    local function load(files)
        return conf.load(function(path)
            return files[path], "No such file"
        end, cjson.decode, "p.json", "q.json")
    end

    it("gives the runtime of two good files", function()
        local runtime, wrong = load({ ["p.json"] = cjson.encode(policy()), ["q.json"] = cjson.encode(peers()) })
        assert.is_nil(wrong)
        assert.are.equal("acme", runtime.keys[key(1)].id)
        assert.are.equal("gpu1", runtime.pools_by_name.r1.peers[1].name)
    end)

    it("says what is wrong in each file", function()
        local runtime, wrong = load({ ["p.json"] = cjson.encode(put(policy(), "version", 3)) })
        assert.is_nil(runtime)
        table.sort(wrong)
        assert.are.same({ "peers: cannot be read: No such file", "policy.version: expected 1, found 3" }, wrong)
        runtime, wrong = load({ ["p.json"] = '{"version":1,', ["q.json"] = "null" })
        assert.is_nil(runtime)
        assert.are.equal(2, #wrong)
        assert.is_truthy(string.find(wrong[1], "^policy: is not a JSON object: Expected"))
        assert.is_truthy(string.find(wrong[2], "^peers: is not a JSON object: null"))
        runtime, wrong = load({ ["p.json"] = cjson.encode(put(policy(), "tenants.2.models", { "x" })),
            ["q.json"] = cjson.encode(peers()) })
        assert.is_nil(runtime)
        assert.are.same({ 'policy.tenants[1].models[0]: no pool has the name or alias "x"' }, wrong)
        runtime, wrong = load({ ["p.json"] = cjson.encode(put(policy(), "version", 9)),
            ["q.json"] = cjson.encode(put(peers(), "version", 9)) })
        assert.is_nil(runtime)
        assert.are.equal(2, #wrong)
    end)

    it("needs only the beginning of a file to know its id", function()
        assert.are.equal(ID, conf.peek_id('{"id": "' .. ID .. '", "version"'))
        assert.are.equal(ID, conf.peek_id('{\n  "id":"' .. ID .. '"'))
        assert.is_nil(conf.peek_id('{"version":1,"id":"' .. ID .. '"'))
        assert.is_nil(conf.peek_id('{"id":"' .. ID .. '0"'))
        assert.is_nil(conf.peek_id('{"id":"' .. ID:sub(1, 40)))
        assert.is_nil(conf.peek_id(""))
    end)
end)

describe("very many problems", function()
    it("are counted rather than told one by one", function()
        local bad = policy()
        for i = 1, 1000 do
            bad.tenants[i] = { id = "t" .. i, tier = "none", keys_sha256 = {} }
        end
        local out = conf.check_policy(bad)
        assert.are.equal(201, #out)
        assert.are.equal("policy: 800 more problems", out[201])
    end)
end)

describe("the description", function()
    it("says what must be there and what may be missing", function()
        local described = conf.describe()
        for _, row in ipairs({
            "| `tiers.<name>.rpm` | a whole number from 0 to 10000000 | yes | ",
            "| `tenants[].overrides.rpm` | a whole number from 0 to 10000000 | no | ",
            "| `pools[].aliases` | a list | no | ",
        }) do
            assert.is_truthy(described:find("\n" .. row, 1, true), row)
        end
    end)

    it("has a row for every field of a complete configuration", function()
        local described = conf.describe()
        local function walk(value, path)
            for name, inner in pairs(value) do
                local at = path == "" and name or path .. "." .. name
                at = at:gsub("^tiers%.%l+", "tiers.<name>"):gsub("^regions%.%l+", "regions.<name>")
                if type(inner) == "table" and inner[1] ~= nil then
                    assert.is_truthy(described:find("| `" .. at .. "` |", 1, true), at)
                    if type(inner[1]) ~= "table" then
                        assert.is_truthy(described:find("| `" .. at .. "[]` |", 1, true), at)
                    else
                        walk(inner[1], at .. "[]")
                    end
                elseif type(inner) == "table" then
                    walk(inner, at)
                else
                    assert.is_truthy(described:find("| `" .. at .. "` |", 1, true), at)
                end
            end
        end
        walk(policy(), "")
        walk(peers(), "")
        for line in described:gmatch("[^\n]+") do
            if line:sub(1, 1) == "|" then
                assert.are.equal(5, select(2, line:gsub("\\|", ""):gsub("|", "")), line)
            end
        end
    end)
end)

describe("gwcheck", function()
    local program = "roles/gateway/files/gwcheck.lua"
    local folder

    local function write(name, content)
        local path = folder .. "/" .. name
        local file = assert(io.open(path, "wb"))
        file:write(content)
        file:close()
        return path
    end

    -- Status, standard output and standard error of the program.
    local function run(arguments, environment)
        local out, err = folder .. "/out", folder .. "/err"
        local pipe = io.popen(string.format("%s luajit %s %s >%s 2>%s; echo $?", environment or "", program, arguments, out, err))
        local status = tonumber(pipe:read("*a"))
        pipe:close()
        local function content(path)
            local file = assert(io.open(path, "rb"))
            local text = file:read("*a")
            file:close()
            return text
        end
        return status, content(out), content(err)
    end

    before_each(function()
        folder = os.tmpname()
        os.remove(folder)
        assert(os.execute("mkdir " .. folder) == 0)
    end)

    after_each(function()
        os.execute("rm -rf " .. folder)
    end)

    it("ends with 0 for good files, and says nothing", function()
        local p, q = write("p.json", cjson.encode(policy())), write("q.json", cjson.encode(peers()))
        for _, arguments in ipairs({ "policy " .. p, "peers " .. q, "both " .. p .. " " .. q }) do
            local status, out, err = run(arguments)
            assert.are.same({ 0, "", "" }, { status, out, err })
        end
    end)

    it("ends with 1 for bad files, a sentence per line with the file before it", function()
        local p = write("p.json", cjson.encode(put(put(policy(), "version", 2), "auth.strikes", "x")))
        local q = write("q.json", cjson.encode(put(peers(), "version", 2)))
        local status, _, err = run("both " .. p .. " " .. q)
        assert.are.equal(1, status)
        assert.are.equal(p .. ": policy.version: expected 1, found 2\n" .. p
            .. ': policy.auth.strikes: expected a whole number from 0 to 1000000, found "x"\n' .. q
            .. ": peers.version: expected 1, found 2\n", err)
        status, _, err = run("peers " .. p)
        assert.are.equal(1, status)
        assert.is_truthy(err:find("peers.tenants: unknown field", 1, true))
        for _, case in ipairs({ { '{"version": 1,}', "Expected" }, { "3", "3" }, { "", "Expected" }, { "[]", "missing" } }) do
            status, _, err = run("policy " .. write("r.json", case[1]))
            assert.are.equal(1, status, case[1])
            assert.is_truthy(err:find("^/[^\n]*/r%.json: policy[^\n]*" .. case[2]), err)
        end
        status, _, err = run("both " .. write("t.json", cjson.encode(put(policy(), "tenants.2.models", { "x" }))) .. " "
            .. write("u.json", cjson.encode(peers())))
        assert.are.equal(1, status)
        assert.are.equal(folder .. '/t.json: policy.tenants[1].models[0]: no pool has the name or alias "x"\n', err)
    end)

    it("checks the second file as well when the first is no JSON", function()
        local q = write("q.json", cjson.encode(put(peers(), "version", 2)))
        local status, _, err = run("both " .. write("p.json", "") .. " " .. q)
        assert.are.equal(1, status)
        assert.are.equal(2, select(2, err:gsub("\n", "\n")))
        assert.is_truthy(err:find("peers.version", 1, true))
    end)

    it("ends with 2 when it cannot check", function()
        local p = write("p.json", cjson.encode(policy()))
        for _, case in ipairs({
            { "", "usage:" }, { "policy", "usage:" }, { "both " .. p, "usage:" }, { "other " .. p, "usage:" },
            { "policy " .. folder .. "/none", "cannot be read" }, { "policy " .. folder, "cannot be read" },
        }) do
            local status, _, err = run(case[1])
            assert.are.equal(2, status, case[1])
            assert.is_truthy(err:find(case[2], 1, true), err)
        end
        local copy = folder .. "/gwcheck"
        assert(os.execute("cp " .. program .. " " .. copy) == 0)
        local pipe = io.popen("luajit " .. copy .. " policy " .. p .. " 2>&1; echo $?")
        local said = pipe:read("*a")
        pipe:close()
        assert.is_truthy(said:find("cannot find gw/conf.lua in " .. folder, 1, true), said)
        assert.are.equal("2\n", said:sub(-2))
        -- What it is told to use counts, also when there are modules beside it.
        local status, _, err = run("policy " .. p, "GW_LUA_PATH=" .. folder)
        assert.are.equal(2, status)
        assert.is_truthy(err:find("cannot find gw/conf.lua in " .. folder, 1, true))
    end)

    it("finds the modules where GW_LUA_PATH says, and prints the description", function()
        local status, out, err = run("--describe", "GW_LUA_PATH=$PWD/roles/gateway/files/lua")
        assert.are.same({ 0, "" }, { status, err })
        assert.are.equal(conf.describe(), out)
    end)
end)
