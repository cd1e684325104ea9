-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- What the gateway itself answers, in the form of the OpenAI API: errors, the event that ends a broken stream, the list
-- of models.

local as_json = require("gw.text").quote

local M = {}

local format = string.format
local concat = table.concat

-- A string as JSON, with its quotes. nil is null.
function M.quote(value)
    if value == nil then
        return "null"
    end
    return as_json(tostring(value))
end
local quote = M.quote

-- The error object alone: {"error":{...}}.
local function object(kind, code, message, param)
    return '{"error":{"message":' .. quote(message) .. ',"type":' .. quote(kind) .. ',"param":' .. quote(param)
        .. ',"code":' .. quote(code) .. "}}"
end

-- The body of an error answer. status: the HTTP status, the code when code is nil; type, code, message: strings;
-- param: name of the member at fault, or nil. Returns a string without a newline at its end.
function M.body(status, kind, code, message, param)
    return object(kind, code or tostring(status), message, param)
end

-- The gateway's own errors: word -> status, type, code, message. The messages are for the client's developer.
M.known = {
    missing_key = { 401, "invalid_request_error", "invalid_api_key",
        "No API key was given. Send it as \"Authorization: Bearer KEY\"." },
    malformed_key = { 401, "invalid_request_error", "invalid_api_key",
        "The API key is malformed. Send it as \"Authorization: Bearer KEY\"." },
    unknown_key = { 401, "invalid_request_error", "invalid_api_key", "The API key is not valid." },
    too_many_failures = { 429, "requests", "rate_limit_exceeded",
        "Too many requests with a wrong API key came from this address. Try again later." },
    model_not_allowed = { 403, "invalid_request_error", "model_not_allowed",
        "This API key may not use the model." },
    model_not_found = { 404, "invalid_request_error", "model_not_found", "The model does not exist." },
    not_found = { 404, "invalid_request_error", "not_found", "There is nothing at this path." },
    method_not_allowed = { 405, "invalid_request_error", "method_not_allowed",
        "The method is not allowed for this path." },
    bad_request = { 400, "invalid_request_error", "invalid_request_error", "The request is not valid." },
    context_length_exceeded = { 400, "invalid_request_error", "context_length_exceeded",
        "The prompt and max_tokens are longer than the context of the model." },
    length_required = { 411, "invalid_request_error", "length_required", "The request has no body." },
    too_large = { 413, "invalid_request_error", "request_too_large", "The request body is too large." },
    unsupported_media_type = { 415, "invalid_request_error", "unsupported_media_type",
        "The request body must be JSON that is not compressed." },
    requests = { 429, "requests", "rate_limit_exceeded", "The limit of requests is reached." },
    tokens = { 429, "tokens", "rate_limit_exceeded", "The limit of tokens is reached." },
    concurrency = { 429, "concurrency", "rate_limit_exceeded", "The limit of requests at a time is reached." },
    overloaded = { 503, "overloaded", "overloaded", "The engines have no room at the moment. Try again later." },
    unavailable = { 503, "server_error", "unavailable", "No engine for this model is available. Try again later." },
    internal = { 500, "server_error", "internal_error", "The gateway failed." },
    bad_gateway = { 502, "server_error", "bad_gateway", "The engine gave no valid answer." },
    timeout = { 504, "server_error", "timeout", "The engine did not answer in time." },
    stream_timeout = { 504, "server_error", "stream_timeout", "The answer took longer than is allowed." },
    stream_broken = { 502, "server_error", "stream_broken", "The engine's answer ended early." },
}

-- One of the known errors. word: its name; message, param, code: other ones than the known, or nil.
-- Returns status, body. An unknown word is the gateway's own mistake and answers as "internal".
function M.answer(word, message, param, code)
    local known = M.known[word] or M.known.internal
    return known[1], object(known[2], code or known[3], message or known[4], param)
end

-- The answer for a rejection {status, type, reason, message}: by its type, or by its status for a type that is not known.
-- A 503 says its reason in the code: "overloaded" or "unavailable" stay as they are, others become "overloaded_REASON".
-- Returns status, body.
function M.rejection(rejection)
    local status, kind, reason = rejection.status, rejection.type, rejection.reason
    local known = M.known[kind]
    if not known or known[1] ~= status then
        known = status == 429 and M.known.requests or M.known.overloaded
    end
    local code = known[3]
    if status == 503 and reason and reason ~= code then
        code = code .. "_" .. reason
    end
    return status, object(status == 429 and (kind or known[2]) or known[2], code, rejection.message or known[4], nil)
end

-- The event that tells a client that its stream was cut. It is not followed by [DONE]: the answer is not complete.
-- inside: did the bytes sent so far end inside of an event? It is ended first, so that the error is an event of its own.
function M.sse_error(kind, code, message, inside)
    return (inside and "\n\n" or "") .. "data: " .. object(kind, code, message, nil) .. "\n\n"
end

-- The same for one of the known errors, by its word.
function M.sse_answer(word, inside)
    local known = M.known[word] or M.known.internal
    return M.sse_error(known[2], known[3], known[4], inside)
end

-- The answer of /v1/models. pools: list of pools; allowed: set of names {name = true} that the tenant may use, nil for all
-- (a pool whose name is allowed is listed with its aliases); created: Unix time of the configuration.
-- Order: that of the pools, each followed by its aliases in alphabetical order.
function M.models(pools, allowed, created)
    local out = {}
    local function put(id, pool)
        out[#out + 1] = '{"id":' .. quote(id) .. ',"object":"model","created":' .. format("%.0f", created or 0)
            .. ',"owned_by":"gpufleet","root":' .. quote(pool.name)
            .. ',"max_model_len":' .. (pool.context_tokens and format("%.0f", pool.context_tokens) or "null") .. "}"
    end
    for _, pool in ipairs(pools) do
        local whole = not allowed or allowed[pool.name]
        if whole then
            put(pool.name, pool)
        end
        local aliases = {}
        for _, alias in ipairs(pool.aliases or {}) do
            aliases[#aliases + 1] = alias
        end
        table.sort(aliases)
        for _, alias in ipairs(aliases) do
            if whole or allowed[alias] then
                put(alias, pool)
            end
        end
    end
    return '{"object":"list","data":[' .. concat(out, ",") .. "]}"
end

return M
