-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- SHA-256 by libcrypto, through LuaJIT's FFI.

local ffi = require("ffi")

local M = {}

local fill = ffi.string

-- Not SHA256(), which looks for the best implementation at each call.
ffi.cdef([[
int SHA256_Init(uint64_t *state);
int SHA256_Update(uint64_t *state, const char *data, size_t length);
int SHA256_Final(unsigned char *digest, uint64_t *state);
]])

-- nginx has libcrypto in its process already: that one first, so that a worker never holds two versions of it.
local function find_library()
    local function usable(library)
        return library.SHA256_Init ~= nil
    end
    if pcall(usable, ffi.C) then
        return ffi.C
    end
    local why
    for _, name in ipairs({ "crypto", "libcrypto.so.3", "libcrypto.so.1.1" }) do
        local loaded, library = pcall(ffi.load, name)
        if loaded and pcall(usable, library) then
            return library
        end
        why = why or library
    end
    error("gw.sha256: no libcrypto with SHA256 was found: " .. tostring(why))
end

local crypto = find_library()
-- A little more than libcrypto's structure has.
local state = ffi.new("uint64_t[32]")
local digest = ffi.new("unsigned char[32]")
local text = ffi.new("unsigned char[64]")

-- The two digits of each byte.
local HIGH, LOW = ffi.new("unsigned char[256]"), ffi.new("unsigned char[256]")
for value = 0, 255 do
    local digits = string.format("%02x", value)
    HIGH[value], LOW[value] = digits:byte(1), digits:byte(2)
end

local REFUSED = "libcrypto could not compute SHA-256"

local function compute(value)
    return crypto.SHA256_Init(state) == 1 and crypto.SHA256_Update(state, value, #value) == 1
        and crypto.SHA256_Final(digest, state) == 1
end

-- The digest of a string (any bytes): 32 bytes as a string, or nil and a sentence when libcrypto refuses.
function M.raw(value)
    if not compute(value) then
        return nil, REFUSED
    end
    return (fill(digest, 32))
end

-- The digest as 64 lower-case hexadecimal digits, or nil and a sentence.
function M.hex(value)
    if not compute(value) then
        return nil, REFUSED
    end
    for at = 0, 31 do
        local one = digest[at]
        text[2 * at], text[2 * at + 1] = HIGH[one], LOW[one]
    end
    return (fill(text, 64))
end

return M
