-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- The two files of the gateway's configuration: what may be in them, and the tables that workers use.
--
-- The fields are data (M.policy and M.peers): the check and the reference table of fields are both made of them.
-- Every problem is a sentence that begins with the path of its place. Places in lists are counted from 0, as jq does.
-- JSON's {} and [] both arrive as an empty Lua table, so an empty one is taken for whichever of the two is expected.

local floor, huge = math.floor, math.huge
local byte, char, find, format, gsub = string.byte, string.char, string.find, string.format, string.gsub
local lower, match, rep, sub = string.lower, string.match, string.rep, string.sub
local concat, sort = table.concat, table.sort

local M = {}

-- More sentences than this help nobody; the rest is only counted.
local MOST_SENTENCES = 200
-- Largest counts: sums of them stay far below 2^49, which the windows need.
local MOST_TOKENS = 1e12

---------------------------------------------------------------------------------------------------------------------
-- Addresses

-- Four decimal numbers, without leading zeros (some programs read those as octal). Returns 4 bytes or nil.
local function parse4(text)
    local a, b, c, d = match(text, "^(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)$")
    if not a or find("." .. text, "%.0%d") then
        return nil
    end
    a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
    if a > 255 or b > 255 or c > 255 or d > 255 then
        return nil
    end
    return char(a, b, c, d)
end

-- The groups of one side of "::" as bytes, or nil. The last one may be an IPv4 address when this side ends the whole.
local function groups(side, ends)
    if side == "" then
        return ""
    end
    local out, wide = {}, false
    for group in (side .. ":"):gmatch("([^:]*):") do
        if wide then
            return nil
        end
        local bytes
        if match(group, "^%x%x?%x?%x?$") then
            local value = tonumber(group, 16)
            bytes = char(floor(value / 256), value % 256)
        elseif ends then
            bytes, wide = parse4(group), true
        end
        if not bytes then
            return nil
        end
        out[#out + 1] = bytes
    end
    return concat(out)
end

local function parse6(text)
    if not find(text, ":", 1, true) or find(text, "[^%x:.]") then
        return nil
    end
    local from, to = find(text, "::", 1, true)
    if not from then
        local bytes = groups(text, true)
        return bytes and #bytes == 16 and bytes or nil
    end
    local head, tail = groups(sub(text, 1, from - 1), false), groups(sub(text, to + 1), true)
    if not head or not tail or #head + #tail > 14 then
        return nil
    end
    return head .. rep("\0", 16 - #head - #tail) .. tail
end

-- address(text): an IPv4 or IPv6 address without zone or brackets. Returns its 4 or 16 bytes, or nil.
function M.address(text)
    return parse4(text) or parse6(text)
end

local MAPPED = rep("\0", 10) .. "\255\255"

-- The first bits of an address, the rest cleared.
local function prefix(bytes, bits)
    local full, rest = floor(bits / 8), bits % 8
    local out = sub(bytes, 1, full)
    if rest > 0 then
        local step = 2 ^ (8 - rest)
        out = out .. char(floor(byte(bytes, full + 1) / step) * step)
    end
    return out .. rep("\0", #bytes - #out)
end

-- network(text): "10.0.0.0/8", "fd00::/8" or a single address. Returns {text, bytes, bits} or nil. Bits behind the prefix
-- are refused: 10.1.0.0/8 admits more than whoever wrote it seems to mean.
function M.network(text)
    local host, bits = match(text, "^([^/]+)/(%d%d?%d?)$")
    local bytes = M.address(host or text)
    if not bytes then
        return nil
    end
    bits = bits and tonumber(bits) or #bytes * 8
    if bits > #bytes * 8 or prefix(bytes, bits) ~= bytes then
        return nil
    end
    if bits >= 96 and sub(bytes, 1, 12) == MAPPED then
        bytes, bits = sub(bytes, 13), bits - 96
    end
    return { text = text, bytes = bytes, bits = bits }
end

-- inside(networks, address): is an address (text, as $remote_addr) in one of a list of networks? What is no IP address,
-- such as the "unix:" of a socket, is in none.
function M.inside(networks, address)
    local bytes = address and M.address(address)
    if not bytes then
        return false
    end
    if #bytes == 16 and sub(bytes, 1, 12) == MAPPED then
        bytes = sub(bytes, 13)
    end
    for i = 1, #networks do
        local network = networks[i]
        if #network.bytes == #bytes and prefix(bytes, network.bits) == network.bytes then
            return true
        end
    end
    return false
end

---------------------------------------------------------------------------------------------------------------------
-- The fields

-- Each field: kind, about (what it means), optional (may be missing), secret (its value is never shown), and
--   whole, number: min, max, above (greater than min, not equal)   choice: values     text: test(value), expected
--   bool                                                        list: of, min, unique
--   map: key (a text), of, min                                  object: fields (ordered, each with a name)

local function whole(name, min, max, about)
    return { name = name, kind = "whole", min = min, max = max, about = about }
end

local function number(name, min, max, about)
    return { name = name, kind = "number", min = min, max = max, about = about }
end

local function text(name, kind, about)
    return { name = name, kind = "text", test = kind.test, expected = kind.expected, secret = kind.secret, about = about }
end

local function object(name, fields, about)
    return { name = name, kind = "object", fields = fields, about = about }
end

local function list(name, of, about)
    return { name = name, kind = "list", of = of, about = about }
end

local function map(name, key, of, about)
    return { name = name, kind = "map", key = key, of = of, min = 1, about = about }
end

local function with(field, changes)
    for key, value in pairs(changes) do
        field[key] = value
    end
    return field
end

local function optional(field)
    field.optional = true
    return field
end

-- Names are parts of keys in shared memory, where : and | separate, and labels of metrics.
local NAME = {
    expected = "a name of 1 to 64 letters, digits, dots, hyphens and underscores",
    test = function(value)
        return #value <= 64 and find(value, "^%w[%w._-]*$")
    end,
}
local MODEL = {
    expected = "a model name of 1 to 128 letters, digits and . _ : / @ + -",
    test = function(value)
        return #value <= 128 and find(value, "^%w[%w._:/@+-]*$")
    end,
}
local HASH = {
    expected = "64 lower-case hexadecimal digits",
    test = function(value)
        return #value == 64 and not find(value, "[^0-9a-f]")
    end,
}
-- A key that was written instead of its hash must not reach a log.
local KEY_HASH = { expected = HASH.expected, test = HASH.test, secret = true }
local ADDRESS = {
    expected = "an IP address",
    test = function(value)
        local bytes = M.address(value)
        -- The unspecified address would be this host.
        return bytes and find(bytes, "[^%z]")
    end,
}
local NETWORK = { expected = "a network such as 10.0.0.0/8, without bits behind its prefix", test = M.network }
local SERVER_NAME = {
    expected = "a host name, or an empty string",
    test = function(value)
        return value == "" or (#value <= 253 and find(value, "^%w[%w.-]*$") and not find(value, "..", 1, true))
    end,
}
local PATH = {
    expected = "a path that begins with / and has no spaces",
    test = function(value)
        return #value <= 256 and find(value, "^/[\33-\126]*$")
    end,
}

M.priorities = { "batch", "standard", "premium" }

local function by_priority(make)
    local fields = {}
    for i, priority in ipairs(M.priorities) do
        fields[i] = make(priority)
    end
    return fields
end

local function limit_fields()
    return {
        whole("rpm", 0, 10000000, "Requests in windows.requests_s seconds; 0 is no limit."),
        whole("burst_rps", 0, 1000000, "Requests in any second; 0 is no limit."),
        whole("tpm", 0, MOST_TOKENS, "Tokens in windows.tokens_s seconds; 0 is no limit."),
        whole("tpd", 0, MOST_TOKENS * 10, "Tokens in windows.day_s seconds; 0 is no limit."),
        whole("concurrency", 0, 1000000, "Requests at the same time; 0 is no limit."),
        whole("max_tokens", 1, 10000000, "Most tokens that one request may ask for."),
        whole("default_max_tokens", 1, 10000000, "Tokens for a request that does not say how many."),
        whole("max_body", 1, 16777216, "Largest body of a request in bytes."),
        whole("max_stream_seconds", 1, 604800, "Longest answer in seconds; then it is cut."),
        {
            name = "priority",
            kind = "choice",
            values = M.priorities,
            about = "Who is turned away first when the engines are full.",
        },
        whole("queue_ms", 0, 600000, "Longest wait for a place in milliseconds; 0 is none."),
        {
            name = "prompt_estimate",
            kind = "choice",
            values = { "typical", "bound" },
            about = "How many tokens a prompt is taken for before the engine counted them.",
        },
    }
end

local function overrides()
    local fields = limit_fields()
    for i = 1, #fields do
        optional(fields[i])
    end
    return fields
end

local VERSION = with(whole("version", 1, 1, "Version of the format."), { expected = "1" })
local ID = text("id", HASH, "SHA-256 of the rest of the file; workers load the file when it changes.")

-- The fields of policy.json.
M.policy = object("policy", {
    VERSION,
    ID,
    map("tiers", NAME, object(nil, limit_fields()), "The plans, by name."),
    list(
        "tenants",
        object(nil, {
            text("id", NAME, "Name of the tenant in metrics and logs."),
            text("tier", NAME, "One of the tiers."),
            list("keys_sha256", text(nil, KEY_HASH), "SHA-256 of each key that belongs to the tenant."),
            optional(object("overrides", overrides(), "Limits that replace those of the tier.")),
            optional(
                with(
                    list("models", text(nil, MODEL), "Models that the tenant may use; none named is all of them."),
                    { unique = true }
                )
            ),
        }),
        "Who may send requests."
    ),
    object("token_cost", {
        number("prompt", 0, 1000, "Tokens charged for a token of the prompt."),
        number("cached_prompt", 0, 1000, "Tokens charged for a token of the prompt that the engine had cached."),
        number("completion", 0, 1000, "Tokens charged for a token of the answer."),
    }, "What a token counts."),
    object("windows", {
        number("requests_s", 1, 86400, "Length of the window of rpm in seconds."),
        number("tokens_s", 1, 86400, "Length of the window of tpm in seconds."),
        number("day_s", 1, 2678400, "Length of the window of tpd in seconds."),
        whole("buckets", 2, 1440, "Parts that a window is counted in; more is finer and takes more memory."),
    }, "Lengths of the sliding windows."),
    object("breaker", {
        whole("window_s", 1, 300, "Time over which results are counted, in seconds."),
        whole("min_requests", 1, 1000000, "Results that the error rate needs to be judged."),
        with(number("error_rate", 0, 1, "Share of failures that opens the breaker."), { above = true }),
        whole("consecutive", 0, 10000, "Failures in a row that open the breaker; 0 is no such number."),
        number("open_base_s", 0.05, 3600, "First time without requests, in seconds; it doubles each time."),
        number("open_max_s", 0.05, 86400, "Longest time without requests, in seconds."),
        whole("half_open_probes", 1, 1000, "Requests at the same time that try whether an engine is well again."),
        whole("success_needed", 1, 1000, "Successes that close the breaker."),
    }, "When an engine gets no more requests."),
    object("slow_start", {
        number("window_s", 0, 86400, "Time until an engine that came back gets its whole share, in seconds; 0 is off."),
        number("min_percent", 1, 100, "Share that it begins with, in percent."),
        number("aggression", 0.1, 10, "Form of the ramp: 1 is a line, more gives more at first."),
    }, "How an engine that came back is loaded."),
    object("retry", {
        number("budget_percent", 0, 100, "Second attempts allowed, in percent of the requests of 10 seconds."),
        whole("floor", 0, 10000, "Second attempts that are allowed beside that."),
        whole("max_tries", 1, 5, "Attempts for one request; 1 is no second one."),
        whole("max_first_try_ms", 0, 600000, "No second attempt when the first one took longer, in milliseconds."),
    }, "When a request goes to a second engine."),
    object("affinity", {
        {
            name = "mode",
            kind = "choice",
            values = { "off", "prefix" },
            about = "Whether prompts that begin alike go to the same engine.",
        },
        whole("bytes", 64, 1048576, "Bytes of the prompt that are compared."),
        number("max_load_factor", 1, 100, "An engine with this many times the mean load is passed over."),
    }, "Use of the engines' prefix caches."),
    object("shed", {
        object("thresholds", by_priority(function(name)
            return number(name, 0, 1, "Load from which " .. name .. " requests wait or are turned away.")
        end), "Load is tokens in flight over what the healthy engines hold."),
        object("max_waiters", by_priority(function(name)
            return whole(name, 0, 100000, "Most " .. name .. " requests that wait at the same time.")
        end), "How many may wait."),
        whole("ttft_target_ms", 0, 600000, "Aim for the 90th percentile of the time to the first token; 0 is none."),
    }, "What happens when the engines are full."),
    object("health", {
        text("path", PATH, "Path of the engines' health check."),
        number("interval_s", 0.1, 3600, "Time between two checks in seconds."),
        whole("timeout_ms", 10, 60000, "Longest wait for an answer in milliseconds."),
        whole("fall", 1, 100, "Failures in a row after which an engine gets no requests."),
        whole("rise", 1, 100, "Successes in a row after which it gets requests again."),
    }, "Active checks of the engines."),
    object("stream", {
        number("first_byte_s", 0.1, 86400, "Longest wait for the first byte of an answer in seconds."),
        number("gap_s", 0.1, 86400, "Longest pause within an answer in seconds."),
    }, "Limits on answers."),
    object("auth", {
        whole("strikes", 0, 1000000, "Wrong keys from one address before it is blocked; 0 is no limit."),
        number("strike_window_s", 1, 86400, "Time over which they are counted in seconds."),
    }, "Defence against guessed keys."),
    with(
        list("operator_networks", text(nil, NETWORK), "Networks that may read metrics and the status page."),
        { unique = true }
    ),
})

local PEER = {
    text("name", NAME, "Name of the engine in metrics and logs."),
    text("address", ADDRESS, "IP address."),
    whole("port", 1, 65535, "Port."),
    whole("weight", 1, 256, "Share of the load relative to the other engines."),
    whole("capacity_tokens", 1, MOST_TOKENS, "Tokens that the engine can hold at the same time."),
    whole("max_inflight", 1, 1000000, "Requests that it gets at the same time."),
    text("region", NAME, "One of the regions."),
    {
        name = "state",
        kind = "choice",
        values = { "up", "drain", "down" },
        about = "drain and down get no new requests; down is not checked either.",
    },
    optional(text("sni", SERVER_NAME, "Name in the engine's certificate; empty without TLS.")),
}

-- The fields of peers.json.
M.peers = object("peers", {
    VERSION,
    ID,
    text("local_region", NAME, "The region of this gateway."),
    map("regions", NAME, object(nil, {
        whole("priority", 0, 1000, "Regions with the lowest number are used first."),
    }), "The regions, by name."),
    with(
        list("pools", object(nil, {
            text("name", MODEL, "The model's name, as the engines know it."),
            optional(list("aliases", text(nil, MODEL), "Other names that clients may use.")),
            optional({ name = "default", kind = "bool", about = "Used for requests that name no model." }),
            whole("context_tokens", 1, 1e9, "Most tokens of a prompt and its answer."),
            with(list("peers", object(nil, PEER), "The engines that serve the model."), { min = 1 }),
        }), "The models and who serves them."),
        { min = 1 }
    ),
})

---------------------------------------------------------------------------------------------------------------------
-- The check

local function plain(value)
    if value == floor(value) and value > -1e15 and value < 1e15 then
        return format("%.0f", value)
    end
    return format("%.14g", value)
end

local function quote(value)
    local cut = sub(value, 1, 60)
    cut = gsub(cut, '[%c"\\\127-\255]', function(c)
        return format("\\x%02x", byte(c))
    end)
    return '"' .. cut .. (#value > 60 and '..."' or '"')
end

local function is_list(value)
    local count = 0
    for _ in pairs(value) do
        count = count + 1
    end
    return count == #value
end

-- What a value is, for a sentence.
local function found(value, secret)
    local kind = type(value)
    if kind == "string" then
        return secret and format("a string of %d bytes", #value) or quote(value)
    elseif kind == "number" then
        return secret and "a number" or plain(value)
    elseif kind == "boolean" then
        return tostring(value)
    elseif kind == "table" then
        return next(value) == nil and "an empty list or object" or is_list(value) and "a list" or "an object"
    end
    -- cjson.null is a light userdata.
    return value == nil and "nothing" or "null"
end

-- What a field wants, for a sentence.
local function expected(field)
    local kind = field.kind
    if field.expected then
        return field.expected
    elseif kind == "whole" or kind == "number" then
        local what = kind == "whole" and "a whole number" or "a number"
        if field.above then
            return format("%s above %s and up to %s", what, plain(field.min), plain(field.max))
        end
        return format("%s from %s to %s", what, plain(field.min), plain(field.max))
    elseif kind == "choice" then
        return "one of " .. concat(field.values, ", ")
    elseif kind == "bool" then
        return "true or false"
    elseif kind == "list" then
        return (field.min or 0) > 0 and format("a list of at least %d", field.min) or "a list"
    end
    return (field.min or 0) > 0 and format("an object with at least %d member", field.min) or "an object"
end

local function say(out, path, ...)
    if #out < MOST_SENTENCES then
        out[#out + 1] = path .. ": " .. format(...)
    else
        out.more = (out.more or 0) + 1
    end
end

local function member(path, key)
    if type(key) == "string" and find(key, "^[%w_][%w_-]*$") then
        return path .. "." .. key
    end
    return path .. "[" .. (type(key) == "string" and quote(key) or found(key)) .. "]"
end

local walk

local function walk_object(field, value, path, out)
    local known = {}
    for i = 1, #field.fields do
        local inner = field.fields[i]
        known[inner.name] = true
        local item = value[inner.name]
        if item ~= nil then
            walk(inner, item, path .. "." .. inner.name, out)
        elseif not inner.optional then
            say(out, path .. "." .. inner.name, "missing, expected %s", expected(inner))
        end
    end
    local unknown = {}
    for key in pairs(value) do
        if not known[key] then
            unknown[#unknown + 1] = member(path, key)
        end
    end
    sort(unknown)
    for i = 1, #unknown do
        say(out, unknown[i], "unknown field")
    end
end

local function walk_map(field, value, path, out)
    local keys = {}
    for key in pairs(value) do
        keys[#keys + 1] = key
    end
    if #keys < (field.min or 0) then
        return say(out, path, "expected %s, found none", expected(field))
    end
    sort(keys)
    for i = 1, #keys do
        local key = keys[i]
        local place = member(path, key)
        if not field.key.test(key) then
            say(out, place, "expected %s, found %s", field.key.expected, quote(key))
        end
        walk(field.of, value[key], place, out)
    end
end

local function walk_list(field, value, path, out)
    if #value < (field.min or 0) then
        return say(out, path, "expected %s, found none", expected(field))
    end
    local seen = {}
    for i = 1, #value do
        local place, item = format("%s[%d]", path, i - 1), value[i]
        walk(field.of, item, place, out)
        if field.unique then
            if seen[item] then
                say(out, place, "%s is there already at [%d]", found(item), seen[item] - 1)
            end
            seen[item] = i
        end
    end
end

local function wants_strings(value)
    for key in pairs(value) do
        if type(key) ~= "string" then
            return false
        end
    end
    return true
end

-- Check one value against its field.
function walk(field, value, path, out)
    local kind, ok = field.kind, nil
    if kind == "whole" or kind == "number" then
        -- JSON decoders let 1e999 and NaN through; neither is within a range.
        ok = type(value) == "number"
            and value >= field.min
            and value <= field.max
            and value < huge
            and (kind == "number" or value == floor(value))
            and not (field.above and value == field.min)
    elseif kind == "text" then
        ok = type(value) == "string" and field.test(value)
    elseif kind == "choice" then
        for i = 1, #field.values do
            ok = ok or value == field.values[i]
        end
    elseif kind == "bool" then
        ok = type(value) == "boolean"
    elseif type(value) == "table" then
        if kind == "list" and is_list(value) then
            return walk_list(field, value, path, out)
        elseif kind ~= "list" and wants_strings(value) then
            return (kind == "map" and walk_map or walk_object)(field, value, path, out)
        end
    end
    if not ok then
        say(out, path, "expected %s, found %s", expected(field), found(value, field.secret))
    end
end

-- A table, whatever was found: so that cross checks need not ask at each step. walk has said what is wrong.
local function tab(value)
    return type(value) == "table" and value or {}
end

local function limits_of(tier, changes)
    local limits = {}
    for key, value in pairs(tab(tier)) do
        limits[key] = value
    end
    for key, value in pairs(tab(changes)) do
        limits[key] = value
    end
    return limits
end

-- Limits that make no sense together. Each is told at the field to change.
local function check_limits(limits, path, out)
    local most, default = limits.max_tokens, limits.default_max_tokens
    if type(default) ~= "number" then
        return
    end
    if type(most) == "number" and default > most then
        say(out, path .. ".default_max_tokens", "%s is more than max_tokens, which is %s", plain(default), plain(most))
    end
    for _, name in ipairs({ "tpm", "tpd" }) do
        local limit = limits[name]
        if type(limit) == "number" and limit > 0 and default >= limit then
            say(
                out,
                path .. "." .. name,
                "%s is not more than default_max_tokens, which is %s: no request of that size would ever pass",
                plain(limit),
                plain(default)
            )
        end
    end
end

local function check_tenants(policy, out)
    local ids, hashes, tiers = {}, {}, tab(policy.tiers)
    for i, tenant in ipairs(tab(policy.tenants)) do
        local path = format("policy.tenants[%d]", i - 1)
        tenant = tab(tenant)
        if type(tenant.id) == "string" then
            if ids[tenant.id] then
                say(out, path .. ".id", "%s is the id of tenants[%d] too", quote(tenant.id), ids[tenant.id] - 1)
            end
            ids[tenant.id] = ids[tenant.id] or i
        end
        if type(tenant.tier) == "string" then
            if tiers[tenant.tier] == nil then
                say(out, path .. ".tier", "no tier has the name %s", quote(tenant.tier))
            elseif next(tab(tenant.overrides)) ~= nil then
                check_limits(limits_of(tiers[tenant.tier], tenant.overrides), path .. ".overrides", out)
            end
        end
        for j, hash in ipairs(tab(tenant.keys_sha256)) do
            if type(hash) == "string" then
                local place = format("%s.keys_sha256[%d]", path, j - 1)
                if hashes[hash] then
                    say(out, place, "the same key is at %s", hashes[hash])
                end
                hashes[hash] = hashes[hash] or place
            end
        end
    end
end

local function closed(out)
    if out.more then
        out[#out + 1] = format("%s: %d more problems", match(out[1], "^%w+"), out.more)
        out.more = nil
    end
    return out
end

-- check_policy(policy): policy.json as a table. Returns a list of sentences; an empty list means that it is good.
function M.check_policy(policy)
    local out = {}
    walk(M.policy, policy, "policy", out)
    policy = tab(policy)
    local names = {}
    for name in pairs(tab(policy.tiers)) do
        names[#names + 1] = type(name) == "string" and name or nil
    end
    sort(names)
    for _, name in ipairs(names) do
        check_limits(tab(policy.tiers[name]), member("policy.tiers", name), out)
    end
    check_tenants(policy, out)
    local cost = tab(policy.token_cost)
    if type(cost.cached_prompt) == "number" and type(cost.prompt) == "number" and cost.cached_prompt > cost.prompt then
        local place = "policy.token_cost.cached_prompt"
        say(out, place, "%s is more than prompt, which is %s", plain(cost.cached_prompt), plain(cost.prompt))
    end
    local breaker = tab(policy.breaker)
    local base, most = breaker.open_base_s, breaker.open_max_s
    if type(base) == "number" and type(most) == "number" and base > most then
        say(out, "policy.breaker.open_max_s", "%s is less than open_base_s, which is %s", plain(most), plain(base))
    end
    local thresholds = tab(tab(policy.shed).thresholds)
    for i = 2, #M.priorities do
        local low, high = thresholds[M.priorities[i - 1]], thresholds[M.priorities[i]]
        if type(low) == "number" and type(high) == "number" and low > high then
            say(
                out,
                "policy.shed.thresholds." .. M.priorities[i],
                "%s is less than that of %s, which is %s",
                plain(high),
                M.priorities[i - 1],
                plain(low)
            )
        end
    end
    return closed(out)
end

local function check_peer(peer, path, pool_seen, all, regions, out)
    local name, address, port = peer.name, peer.address, peer.port
    local bytes = type(address) == "string" and M.address(address)
    -- Compared as bytes: an IPv6 address has many spellings.
    local place = bytes and type(port) == "number" and bytes .. ":" .. port
    if type(peer.region) == "string" and regions[peer.region] == nil then
        say(out, path .. ".region", "no region has the name %s", quote(peer.region))
    end
    if place then
        if pool_seen.places[place] then
            say(out, path .. ".address", "%s has this address and port too", pool_seen.places[place])
        end
        pool_seen.places[place] = path
        -- nginx keeps connections by address and port, and uses one again without asking whose certificate it was.
        local sni = type(peer.sni) == "string" and lower(peer.sni) or ""
        local other = all.sni[place]
        if other and other.sni ~= sni then
            say(out, path .. ".sni", "%s has the same address and port and another name", other.path)
        end
        all.sni[place] = other or { sni = sni, path = path }
    end
    if type(name) == "string" then
        if pool_seen.names[name] then
            say(out, path .. ".name", "%s has the name %s too", pool_seen.names[name], quote(name))
        end
        pool_seen.names[name] = path
        local other = all.names[name]
        if other and not pool_seen.own[other] then
            -- One name is one engine with one load, so what is said about it in two pools must agree.
            for i = 1, #PEER do
                local key = PEER[i].name
                if (other.peer[key] or "") ~= (peer[key] or "") then
                    say(out, path .. "." .. key, "%s is the same engine and says otherwise", other.path)
                end
            end
        end
        if not other then
            other = { peer = peer, path = path }
            all.names[name], pool_seen.own[other] = other, true
        end
    end
end

-- check_peers(peers): peers.json as a table. Returns a list of sentences; an empty list means that it is good.
function M.check_peers(peers)
    local out = {}
    walk(M.peers, peers, "peers", out)
    peers = tab(peers)
    local regions = tab(peers.regions)
    if type(peers.local_region) == "string" and regions[peers.local_region] == nil then
        say(out, "peers.local_region", "no region has the name %s", quote(peers.local_region))
    end
    local models, default, all = {}, nil, { names = {}, sni = {} }
    local function model(name, path)
        if type(name) == "string" then
            if models[name] then
                say(out, path, "%s is used at %s", quote(name), models[name])
            end
            models[name] = models[name] or path
        end
    end
    for i, pool in ipairs(tab(peers.pools)) do
        local path = format("peers.pools[%d]", i - 1)
        pool = tab(pool)
        model(pool.name, path .. ".name")
        for j, alias in ipairs(tab(pool.aliases)) do
            model(alias, format("%s.aliases[%d]", path, j - 1))
        end
        if pool.default == true then
            if default then
                say(out, path .. ".default", "%s is the default already", default)
            end
            default = default or path
        end
        local seen = { names = {}, places = {}, own = {} }
        for j, peer in ipairs(tab(pool.peers)) do
            check_peer(tab(peer), format("%s.peers[%d]", path, j - 1), seen, all, regions, out)
        end
    end
    return closed(out)
end

-- check_both(policy, peers): what only shows when both are there. Each must be good on its own. Returns sentences.
function M.check_both(policy, peers)
    local out, known = {}, {}
    for _, pool in ipairs(peers.pools) do
        known[pool.name] = true
        for _, alias in ipairs(tab(pool.aliases)) do
            known[alias] = true
        end
    end
    for i, tenant in ipairs(policy.tenants) do
        for j, name in ipairs(tab(tenant.models)) do
            if not known[name] then
                local path = format("policy.tenants[%d].models[%d]", i - 1, j - 1)
                say(out, path, "no pool has the name or alias %s", quote(name))
            end
        end
    end
    return closed(out)
end

---------------------------------------------------------------------------------------------------------------------
-- What workers use

local function copy(value)
    if type(value) ~= "table" then
        return value
    end
    local out = {}
    for key, item in pairs(value) do
        out[key] = copy(item)
    end
    return out
end

local function build_pools(peers, runtime)
    for _, source in ipairs(peers.pools) do
        local pool = {
            name = source.name,
            aliases = copy(tab(source.aliases)),
            default = source.default == true,
            context_tokens = source.context_tokens,
            peers = {},
        }
        local up = 0
        for i, from in ipairs(source.peers) do
            local peer = runtime.peers_by_name[from.name]
            if not peer then
                peer = copy(from)
                peer.sni = peer.sni or ""
                peer.dial = find(peer.address, ":", 1, true) and "[" .. peer.address .. "]" or peer.address
                runtime.peers_by_name[peer.name] = peer
                runtime.peer_list[#runtime.peer_list + 1] = peer
            end
            pool.peers[i] = peer
            up = up + (peer.state == "up" and 1 or 0)
        end
        runtime.pools[#runtime.pools + 1] = pool
        runtime.pools_by_name[pool.name] = pool
        for _, alias in ipairs(pool.aliases) do
            runtime.pools_by_name[alias] = pool
        end
        if pool.default then
            runtime.default_pool = pool
        end
        if up == 0 then
            runtime.warnings[#runtime.warnings + 1] = format("Pool %s has no engine in state up.", pool.name)
        end
    end
end

local function build_models(names, runtime)
    if not names or #names == 0 then
        return nil
    end
    local set = {}
    for _, name in ipairs(names) do
        local pool = runtime.pools_by_name[name]
        set[name] = true
        if pool then
            set[pool.name] = true
            for _, alias in ipairs(pool.aliases) do
                set[alias] = true
            end
        end
    end
    return set
end

local function build_tenants(policy, runtime)
    for name, tier in pairs(policy.tiers) do
        runtime.tiers[name] = copy(tier)
    end
    for i, source in ipairs(policy.tenants) do
        local limits = runtime.tiers[source.tier]
        if next(tab(source.overrides)) ~= nil then
            limits = limits_of(limits, source.overrides)
        end
        local tenant = {
            id = source.id,
            tier = source.tier,
            limits = limits,
            models = build_models(source.models, runtime),
        }
        runtime.tenants[i] = tenant
        runtime.tenants_by_id[tenant.id] = tenant
        for _, hash in ipairs(source.keys_sha256) do
            runtime.keys[hash] = tenant
        end
        if #source.keys_sha256 == 0 then
            runtime.warnings[#runtime.warnings + 1] = format("Tenant %s has no key.", tenant.id)
        end
    end
end

-- build(policy, peers): two good tables -> the runtime:
--   policy, peers: copies of the two, for the sections that workers use as they are
--   policy_id, peers_id; id (both, shortened)
--   tiers {name -> limits}; tenants (list), tenants_by_id; keys {sha256 hex -> tenant}
--     tenant {id, tier, limits (of the tier, with overrides), models (nil for all, or a set with every name of each pool)}
--   pools (list), pools_by_name {name or alias -> pool}, default_pool (or nil)
--   peer_list (each engine once), peers_by_name; pools that share an engine share its table
--     peer {all its fields, sni "" when it is missing, dial (the address as nginx's balancer wants it: IPv6 in brackets)}
--   operator_networks (a list for M.inside)
--   warnings (list of sentences: good, but perhaps not meant)
-- Nothing in it is shared with the arguments.
function M.build(policy, peers)
    local runtime = {
        policy = copy(policy),
        peers = copy(peers),
        policy_id = policy.id,
        peers_id = peers.id,
        id = sub(policy.id, 1, 12) .. "-" .. sub(peers.id, 1, 12),
        tiers = {},
        tenants = {},
        tenants_by_id = {},
        keys = {},
        pools = {},
        pools_by_name = {},
        peer_list = {},
        peers_by_name = {},
        operator_networks = {},
        warnings = {},
    }
    for i, network in ipairs(policy.operator_networks) do
        runtime.operator_networks[i] = M.network(network)
    end
    build_pools(peers, runtime)
    build_tenants(policy, runtime)
    return runtime
end

local function read_one(read, decode, what, path, out)
    local source, reason = read(path)
    if not source then
        say(out, what, "cannot be read: %s", tostring(reason or path))
        return nil
    end
    local value, err = decode(source)
    if type(value) ~= "table" then
        say(out, what, "is not a JSON object: %s", tostring(err or found(value)))
        return nil
    end
    return value
end

local function append(out, more)
    for i = 1, #more do
        out[#out + 1] = more[i]
    end
end

-- read(read, decode, policy_path, peers_path): both files, checked. read(path) -> text | nil, reason;
-- decode(text) -> table | nil, reason (cjson.safe's). Either path may be nil: that file is left out.
-- Returns policy, peers, sentences.
function M.read(read, decode, policy_path, peers_path)
    local out = {}
    local policy = policy_path and read_one(read, decode, "policy", policy_path, out)
    local peers = peers_path and read_one(read, decode, "peers", peers_path, out)
    if policy then
        append(out, M.check_policy(policy))
    end
    if peers then
        append(out, M.check_peers(peers))
    end
    if policy and peers and #out == 0 then
        append(out, M.check_both(policy, peers))
    end
    return policy, peers, out
end

-- load(read, decode, policy_path, peers_path): the arguments of M.read, with both paths. Returns the runtime | nil, list
-- of sentences.
function M.load(read, decode, policy_path, peers_path)
    local policy, peers, out = M.read(read, decode, policy_path, peers_path)
    if #out > 0 then
        return nil, out
    end
    return M.build(policy, peers)
end

-- peek_id(text): the id when it is the first member of a file of which text is the beginning (100 bytes do), or nil.
-- Saves workers from reading a large file each second; when it is nil they have to.
function M.peek_id(start)
    local id = match(start, '^%s*{%s*"id"%s*:%s*"([0-9a-f]+)"')
    return id and #id == 64 and id or nil
end

---------------------------------------------------------------------------------------------------------------------
-- The reference

local function cell(value)
    return (gsub(value, "|", "\\|"))
end

local function rows(field, path, out)
    if field.about and path ~= "" then
        out[#out + 1] = format(
            "| `%s` | %s | %s | %s |",
            path,
            cell(expected(field)),
            field.optional and "no" or "yes",
            cell(field.about)
        )
    end
    if field.kind == "object" then
        for i = 1, #field.fields do
            local inner = field.fields[i]
            rows(inner, path == "" and inner.name or path .. "." .. inner.name, out)
        end
    elseif field.kind == "map" then
        rows(field.of, path .. ".<name>", out)
    elseif field.kind == "list" and field.of.kind == "object" then
        rows(field.of, path .. "[]", out)
    elseif field.kind == "list" then
        out[#out + 1] = format("| `%s[]` | %s | | |", path, cell(expected(field.of)))
    end
end

-- describe(): every field of both files as Markdown tables.
function M.describe()
    local out = {}
    for _, file in ipairs({ M.policy, M.peers }) do
        out[#out + 1] = "### " .. file.name .. ".json\n"
        out[#out + 1] = "| Field | Expected | Required | Meaning |\n|---|---|---|---|"
        rows(file, "", out)
        out[#out + 1] = ""
    end
    return concat(out, "\n")
end

return M
