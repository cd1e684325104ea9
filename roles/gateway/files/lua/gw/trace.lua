-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- W3C Trace Context: read traceparent and tracestate, make ids, write the header for the engine.

local bit = require("bit")
local ffi = require("ffi")

local M = {}

local band, rshift = bit.band, bit.rshift
local byte, find, sub = string.byte, string.find, string.sub
local floor = math.floor
local fill = ffi.string

local FLAGS = { [0] = "00", "01", "02", "03" }
-- Ids are put together in a buffer: of strings that are alike, LuaJIT must tell each new one from all others.
local DIGITS = ffi.new("unsigned char[16]", { byte("0123456789abcdef", 1, 16) })
local buffer = ffi.new("unsigned char[32]")

local NO_TRACE, NO_PARENT = string.rep("0", 32), string.rep("0", 16)

-- The bits of the flags that are known: 1 sampled, 2 random trace id. Others are not passed on, as the standard demands.
local KNOWN_FLAGS = 3

-- The longest tracestate that is passed on, in bytes, and its most members.
M.LONGEST_STATE, M.MOST_MEMBERS = 512, 32

-- Read a traceparent header (string or nil).
-- Returns trace id (32 digits), parent id (16 digits), flags (a number: 1 sampled, 2 random), or nil.
function M.parse(value)
    if type(value) ~= "string" or #value < 55 then
        return nil
    end
    -- version "-" trace-id "-" parent-id "-" flags; a later version may go on, but only behind another hyphen.
    if byte(value, 3) ~= 45 or byte(value, 36) ~= 45 or byte(value, 53) ~= 45 then
        return nil
    end
    local version = sub(value, 1, 2)
    if version == "ff" or find(version, "[^0-9a-f]") then
        return nil
    end
    if #value > 55 and (version == "00" or byte(value, 56) ~= 45) then
        return nil
    end
    local trace, parent, flags = sub(value, 4, 35), sub(value, 37, 52), sub(value, 54, 55)
    if trace == NO_TRACE or parent == NO_PARENT then
        return nil
    end
    if find(trace, "[^0-9a-f]") or find(parent, "[^0-9a-f]") or find(flags, "[^0-9a-f]") then
        return nil
    end
    return trace, parent, band(tonumber(flags, 16), KNOWN_FLAGS)
end

-- A tracestate header as it is passed on, or nil when it is dropped: empty, longer than 512 bytes, more than 32 members,
-- or with bytes that no header may have. It means nothing without a valid traceparent: the caller drops it then.
function M.state(value)
    if type(value) ~= "string" or #value > M.LONGEST_STATE or not find(value, "[^ \t,]") then
        return nil
    end
    if find(value, "[^\t\32-\126]") then
        return nil
    end
    local members, at = 1, find(value, ",", 1, true)
    while at do
        members = members + 1
        at = find(value, ",", at + 1, true)
    end
    if members > M.MOST_MEMBERS then
        return nil
    end
    return value
end

-- Put eight digits into the buffer. Bit operations see the number modulo 2^32.
local function put(at, value)
    buffer[at], buffer[at + 1] = DIGITS[rshift(value, 28)], DIGITS[band(rshift(value, 24), 15)]
    buffer[at + 2], buffer[at + 3] = DIGITS[band(rshift(value, 20), 15)], DIGITS[band(rshift(value, 16), 15)]
    buffer[at + 4], buffer[at + 5] = DIGITS[band(rshift(value, 12), 15)], DIGITS[band(rshift(value, 8), 15)]
    buffer[at + 6], buffer[at + 7] = DIGITS[band(rshift(value, 4), 15)], DIGITS[band(value, 15)]
end

-- source(rand): from rand() in [0, 1) a function that returns two whole numbers from 0 to 2^32 - 1: 64 random bits.
-- Two calls of rand, because it may not have 64 good bits. Workers must not share a seed.
function M.source(rand)
    return function()
        return floor(rand() * 4294967296), (floor(rand() * 4294967296))
    end
end

local function put_child(at, high, low)
    put(at, high)
    put(at + 8, high == 0 and low == 0 and 1 or low)
end

-- A new span id: 16 digits, never all zero. rand64() returns two numbers as source makes them.
function M.child(rand64)
    local high, low = rand64()
    put_child(0, high, low)
    return (fill(buffer, 16))
end

-- A new trace id: 32 digits, never all zero.
function M.id(rand64)
    local high, low = rand64()
    put_child(0, high, low)
    high, low = rand64()
    put_child(16, high, low)
    return (fill(buffer, 32))
end

-- A new trace id and span id.
function M.root(rand64)
    local id = M.id(rand64)
    return id, M.child(rand64)
end

-- The header for a span. flags: a number as parse returns it.
function M.format(trace, span, flags)
    return "00-" .. trace .. "-" .. span .. "-" .. FLAGS[band(flags or 0, KNOWN_FLAGS)]
end

-- All of it for one request. traceparent, tracestate: headers of the client, or nil; rand64: see child;
-- sampled: is a trace that begins here to be recorded? decide(flags): says so in its place, for the traces of clients as well
-- (flags: the client's, nil for a trace that begins here); without it, a client's own word stands.
-- Returns the traceparent for the engine, the tracestate for the engine or nil, trace id, the span id in that traceparent, the
-- client's span id or nil, and the flags in that traceparent.
function M.continue(traceparent, tracestate, rand64, sampled, decide)
    local trace, parent, flags = M.parse(traceparent)
    local span
    if decide then
        sampled = decide(flags)
    end
    if trace then
        span = M.child(rand64)
        tracestate = M.state(tracestate)
        if decide then
            -- Bit 2 says how the id was made, which stays true.
            flags = band(flags, 2) + (sampled and 1 or 0)
        end
    else
        trace, span = M.root(rand64)
        -- All bits of an id made here are random.
        flags = sampled and 3 or 2
        tracestate = nil
    end
    return M.format(trace, span, flags), tracestate, trace, span, parent, flags
end

return M
