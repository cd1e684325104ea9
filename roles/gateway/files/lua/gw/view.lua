-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Large bodies that stay where nginx has them.
--
-- LuaJIT copies a text into a string, and one of more than 128 KiB into memory that it maps for it and gives back: faults of its
-- pages were a third of what a request of 220 KB cost. A view has an address and a length. It is good for as long as what it was
-- made of: a body until it is set anew or its request ends.

local ffi = require("ffi")

local M = {}

local C, cast, string_of = ffi.C, ffi.cast, ffi.string
local concat = table.concat
local BYTES = ffi.typeof("const unsigned char *")

ffi.cdef([[
void *memchr(const void *bytes, int value, size_t count);
]])

local QUOTE, BACKSLASH = 34, 92
-- In the outline a string that is longer than this has this instead of its inside. Nothing that anybody reads is as long.
M.LONG = 4096
M.FILLER = string.rep("x", 1024)
local SAVED = #M.FILLER

-- A view of so many bytes at an address. anchor: what keeps them there, if that is Lua's.
function M.new(address, length, anchor)
    return { at = cast(BYTES, address), length = length, anchor = anchor }
end

-- Bytes from..to as a string; what lies behind the end is left out. from is 1 or more.
function M.sub(view, from, to)
    if to > view.length then
        to = view.length
    end
    if from > to then
        return ""
    end
    local text = string_of(view.at + (from - 1), to - from + 1)
    return text
end

-- The place of the first quote from pos on, or nil. at, length: the view's.
local function quote(at, length, pos)
    if pos > length then
        return nil
    end
    local found = C.memchr(at + (pos - 1), QUOTE, length - pos + 1)
    if found == nil then
        return nil
    end
    local place = tonumber(cast(BYTES, found) - at) + 1
    return place
end

-- Does an odd number of backslashes end before a place?
local function escaped(at, place)
    local back = place - 2
    while at[back] == BACKSLASH do
        back = back - 1
    end
    return (place - back) % 2 == 1
end

-- The place of the quote that ends the string whose first quote is at pos, or nil.
local function string_end(at, length, pos)
    local close = quote(at, length, pos + 1)
    -- The first quote stands before all backslashes, so none is looked for in front of it.
    while close and at[close - 2] == BACKSLASH and escaped(at, close) do
        close = quote(at, length, close + 1)
    end
    return close
end

-- The text of a JSON object as a string with its long strings shortened, and where: for each of them the place in the outline
-- from which on places are others in the view, and by how much, in order. What is no JSON may come out in any way.
function M.outline(view)
    local at, length = view.at, view.length
    local parts, count, cuts, size, shift = {}, 0, {}, 0, 0
    local from, open = 1, quote(at, length, 1)
    while open do
        local close = string_end(at, length, open)
        if not close then
            break
        end
        if close - open > M.LONG then
            parts[count + 1], parts[count + 2] = M.sub(view, from, open), M.FILLER
            size, shift = size + open - from + 1 + SAVED, shift + close - open - 1 - SAVED
            cuts[count + 1], cuts[count + 2] = size + 1, shift
            count, from = count + 2, close
        end
        open = quote(at, length, close + 1)
    end
    if count == 0 then
        return M.sub(view, 1, length), cuts
    end
    parts[count + 1] = M.sub(view, from, length)
    return concat(parts), cuts
end

-- The place in the view of a place in its outline that is not inside of what was shortened.
function M.place(cuts, place)
    local shift = 0
    for i = 1, #cuts, 2 do
        if cuts[i] > place then
            break
        end
        shift = cuts[i + 1]
    end
    return place + shift
end

-- Of a view and of changes (first, last, text, first, last, text, ...; in order of place; see gw.scan): the parts of the new
-- text, those of the view of at most so many bytes each, and the length of all of them.
function M.parts(view, changes, most)
    local out, count, size, pos = {}, 0, 0, 1
    for i = 1, #changes + 1, 3 do
        local last = (changes[i] or view.length + 1) - 1
        while pos <= last do
            local to = pos + most - 1
            if to > last then
                to = last
            end
            count, size = count + 1, size + to - pos + 1
            out[count] = M.sub(view, pos, to)
            pos = to + 1
        end
        local text = changes[i + 2]
        if text then
            count, size = count + 1, size + #text
            out[count] = text
            pos = changes[i + 1] + 1
        end
    end
    return out, size
end

return M
