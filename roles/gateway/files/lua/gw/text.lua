-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Texts that may hold anything, for readers that refuse what is not UTF-8.

local M = {}

local byte, char, find, format, gsub, sub =
    string.byte, string.char, string.find, string.format, string.gsub, string.sub
local concat = table.concat

-- U+FFFD.
M.MARK = "\239\191\189"

local ESCAPES = { ['"'] = '\\"', ["\\"] = "\\\\", ["\b"] = "\\b", ["\f"] = "\\f", ["\n"] = "\\n", ["\r"] = "\\r",
    ["\t"] = "\\t" }
for code = 0, 31 do
    local one = char(code)
    ESCAPES[one] = ESCAPES[one] or format("\\u%04x", code)
end
ESCAPES["\127"] = "\\u007f"

-- The number of bytes of the UTF-8 character at a position, or nil when the bytes there are none. Surrogates, overlong
-- forms and what lies beyond U+10FFFF are none.
local function character(text, pos)
    local a, b, c, d = byte(text, pos, pos + 3)
    if a < 0x80 then
        return 1
    elseif a < 0xC2 or a > 0xF4 or not b or b < 0x80 or b > 0xBF then
        return nil
    elseif a < 0xE0 then
        return 2
    elseif not c or c < 0x80 or c > 0xBF then
        return nil
    elseif a < 0xF0 then
        if (a == 0xE0 and b < 0xA0) or (a == 0xED and b > 0x9F) then
            return nil
        end
        return 3
    elseif not d or d < 0x80 or d > 0xBF or (a == 0xF0 and b < 0x90) or (a == 0xF4 and b > 0x8F) then
        return nil
    end
    return 4
end

-- A text with a mark (U+FFFD unless given) in the place of each byte that is no UTF-8.
function M.clean(text, mark)
    if not find(text, "[\128-\255]") then
        return text
    end
    local out, count, pos, from = {}, 0, 1, 1
    while pos <= #text do
        local size = character(text, pos)
        if not size then
            out[count + 1], out[count + 2] = sub(text, from, pos - 1), mark or M.MARK
            count = count + 2
            from = pos + 1
        end
        pos = pos + (size or 1)
    end
    if count == 0 then
        return text
    end
    out[count + 1] = sub(text, from)
    return concat(out)
end

-- A text as a JSON string, with its quotes.
function M.quote(text)
    return '"' .. gsub(M.clean(text), '[%c"\\]', ESCAPES) .. '"'
end

return M
