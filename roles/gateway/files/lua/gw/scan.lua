-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Read what the gateway needs from a JSON request body without decoding it, and change single members in place.
--
-- A body of 220 KB is mostly one or a few long strings. They are crossed by a search for the next quote, so that the cost
-- depends on the number of tokens of JSON, not on the length of the prompt.
--
-- The gateway and the engine must read the same request: what one parser takes and another does not (a member given
-- twice, a name written with escapes or other letter case, "true" in quotes for a boolean) is refused where it decides
-- something. Inside nested values the structure is checked as well, because a wrong idea of where a string ends is a wrong
-- idea of everything behind it; only the spelling of nested numbers and of escapes in nested strings is the engine's task.

local view = require("gw.view")

local ffi = require("ffi")
local new_table = require("table.new")

local M = {}

local byte, char, find, match, sub = string.byte, string.char, string.find, string.match, string.sub
local gsub, lower = string.gsub, string.lower
local concat = table.concat
local floor = math.floor
local C, cast = ffi.C, ffi.cast

ffi.cdef([[
size_t strspn(const char *text, const char *accept);
size_t strcspn(const char *text, const char *reject);
]])

local CHARS = ffi.typeof("const char *")
local DIGITS, WORD = "0123456789", "abcdefghijklmnopqrstuvwxyz0123456789_"
local CONTROLS = "\127"
for code = 1, 31 do
    CONTROLS = CONTROLS .. char(code)
end

local QUOTE, BACKSLASH, COMMA, COLON = 34, 92, 44, 58
local OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY = 123, 125, 91 -- a closing one is its opening one + 2

-- Levels of nesting below a top-level member. Engines in Python stop somewhere below 1000.
M.MAX_DEPTH = 128
-- The longest model name, user or prompt_cache_key, in bytes as written.
M.MAX_STRING = 512
-- Largest values of max_tokens and max_completion_tokens, and of n and best_of.
M.MAX_TOKENS = 1000000000
M.MAX_CHOICES = 1024

-- LuaJIT does not compile patterns, and loops that are seldom gone through twice only badly. So C counts bytes, and what is
-- usual in a request comes before a loop and not in it.

-- How many bytes from pos on are in a set. It ends at a zero byte, which is in none.
local function span(text, pos, set)
    return (tonumber(C.strspn(cast(CHARS, text) + (pos - 1), set)))
end

local function spaces(text, pos, c)
    while c == 32 or c == 10 or c == 13 or c == 9 do
        pos = pos + 1
        c = byte(text, pos)
    end
    return pos, c
end

-- The next byte that is no white space: its position and value (nil at the end).
local function space(text, pos)
    local c = byte(text, pos)
    if c == 32 then
        pos = pos + 1
        c = byte(text, pos)
    end
    if not c or c > 32 then
        return pos, c
    end
    return spaces(text, pos, c)
end

local function escaped_end(text, close)
    while close do
        if byte(text, close - 1) ~= BACKSLASH then
            return close
        end
        local back = close - 2
        while byte(text, back) == BACKSLASH do
            back = back - 1
        end
        if (close - 1 - back) % 2 == 0 then
            return close
        end
        close = find(text, '"', close + 1, true)
    end
    return nil
end

-- The position of the quote that ends the string whose first quote is at pos, or nil. A quote counts when an even number
-- of backslashes stands before it; each run of backslashes is looked at once, so the cost is linear for any input.
local function string_end(text, pos)
    local close = find(text, '"', pos + 1, true)
    if not close or byte(text, close - 1) ~= BACKSLASH then
        return close
    end
    return escaped_end(text, close)
end

-- The last byte of the number or literal that begins at pos, or nil, what is wrong, where.
local function scalar(text, pos)
    local c = byte(text, pos)
    if not c then
        return nil, "the text ends early", pos
    end
    if c == 45 or (c >= 48 and c <= 57) then
        return pos + span(text, pos, "0123456789.eE+-") - 1
    end
    if c == 116 and sub(text, pos, pos + 3) == "true" or c == 110 and sub(text, pos, pos + 3) == "null" then
        return pos + 3
    end
    if c == 102 and sub(text, pos, pos + 4) == "false" then
        return pos + 4
    end
    return nil, "expected a value", pos
end

-- The value of the member whose name's first quote should be at pos: its position and first byte, and the position of the
-- name's last quote; or nil, what, where.
local function after_name(text, pos)
    if byte(text, pos) ~= QUOTE then
        return nil, "expected a member name in quotes", pos
    end
    local close = string_end(text, pos)
    if not close then
        return nil, "a string has no end", pos
    end
    local at, c = space(text, close + 1)
    if c ~= COLON then
        return nil, "expected a colon", at
    end
    at, c = space(text, at + 1)
    return at, c, close
end

-- The kinds of the containers that are open, by depth. One table for all calls: nothing here yields.
local kinds = {}

-- The last byte of the object or array that begins at pos, or nil, what is wrong, where.
local function container(text, pos, c)
    local depth, value = 0, true
    while true do
        if not value then
            -- pos is the last byte of a value: leave the container that ends here, or go to the next value.
            if depth == 0 then
                return pos
            end
            local kind = kinds[depth]
            pos, c = space(text, pos + 1)
            if c == COMMA then
                pos, c = space(text, pos + 1)
                value = true
                if kind == OPEN_OBJECT then
                    local from, first, where = after_name(text, pos)
                    if not from then
                        return nil, first, where
                    end
                    pos, c = from, first
                end
            elseif c == kind + 2 then
                depth = depth - 1
            else
                return nil, kind == OPEN_OBJECT and 'expected a comma or "}"' or 'expected a comma or "]"', pos
            end
        elseif c == QUOTE then
            local close = string_end(text, pos)
            if not close then
                return nil, "a string has no end", pos
            end
            pos, value = close, false
        elseif c == OPEN_OBJECT or c == OPEN_ARRAY then
            if depth >= M.MAX_DEPTH then
                return nil, "values are nested deeper than " .. M.MAX_DEPTH .. " levels", pos
            end
            local kind = c
            pos, c = space(text, pos + 1)
            if c == kind + 2 then
                value = false
            else
                depth = depth + 1
                kinds[depth] = kind
                if kind == OPEN_OBJECT then
                    local from, first, where = after_name(text, pos)
                    if not from then
                        return nil, first, where
                    end
                    pos, c = from, first
                end
            end
        else
            local last, why, where = scalar(text, pos)
            if not last then
                return nil, why, where
            end
            pos, value = last, false
        end
    end
end

-- The last byte of the value that begins at pos, or nil, what is wrong, where.
local function skip(text, pos)
    local c = byte(text, pos)
    if c == QUOTE then
        local close = string_end(text, pos)
        if not close then
            return nil, "a string has no end", pos
        end
        return close
    elseif c == OPEN_OBJECT or c == OPEN_ARRAY then
        return container(text, pos, c)
    end
    return scalar(text, pos)
end

-- One member of an object. pos: where its name's first quote should be.
-- Returns the position of the name's last quote, first and last byte of the value, the position of what follows and that
-- byte (a comma, 44, or a closing brace, 125); or nil, what is wrong, where.
local function member(text, pos)
    local from, what, close = after_name(text, pos)
    if not from then
        return nil, what, close
    end
    local to, why, where = skip(text, from)
    if not to then
        return nil, why, where
    end
    local at, c = space(text, to + 1)
    if c ~= COMMA and c ~= CLOSE_OBJECT then
        return nil, 'expected a comma or "}"', at
    end
    return close, from, to, at, c
end

-- For the modules that read answers: the same walk over JSON.
M.space, M.skip, M.member, M.string_end, M.span = space, skip, member, string_end, span

local SHORT = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function utf8(code)
    if code < 0x80 then
        return char(code)
    elseif code < 0x800 then
        return char(0xC0 + floor(code / 0x40), 0x80 + code % 0x40)
    elseif code < 0x10000 then
        return char(0xE0 + floor(code / 0x1000), 0x80 + floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
    end
    return char(
        0xF0 + floor(code / 0x40000), 0x80 + floor(code / 0x1000) % 0x40,
        0x80 + floor(code / 0x40) % 0x40, 0x80 + code % 0x40
    )
end

-- The text of a JSON string whose inside is raw, or nil when an escape is wrong. Half a surrogate pair becomes U+FFFD.
local function unescape(raw)
    local at = find(raw, "\\", 1, true)
    if not at then
        return raw
    end
    local out, count, pos = {}, 0, 1
    while at do
        count = count + 1
        out[count] = sub(raw, pos, at - 1)
        local short = SHORT[sub(raw, at + 1, at + 1)]
        if short then
            pos = at + 2
        else
            local hex = match(raw, "^\\u(%x%x%x%x)", at)
            if not hex then
                return nil
            end
            local code = tonumber(hex, 16)
            pos = at + 6
            if code >= 0xD800 and code <= 0xDFFF then
                local low = tonumber(code < 0xDC00 and match(raw, "^\\u([dD][c-fC-F]%x%x)", pos) or "0", 16)
                if low > 0 then
                    code = 0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00
                    pos = pos + 6
                else
                    code = 0xFFFD
                end
            end
            short = utf8(code)
        end
        count = count + 1
        out[count] = short
        at = find(raw, "\\", pos, true)
    end
    out[count + 1] = sub(raw, pos)
    return concat(out)
end
M.unescape = unescape

-- Does a text have the form of a JSON number?
local function is_number(text)
    -- Digits alone are usual.
    if byte(text) ~= 48 and span(text, 1, DIGITS) == #text then
        return text ~= ""
    end
    local pos = match(text, "^%-?0()") or match(text, "^%-?[1-9]%d*()")
    if not pos then
        return false
    end
    pos = match(text, "^%.%d+()", pos) or pos
    pos = match(text, "^[eE][+-]?%d+()", pos) or pos
    return pos == #text + 1
end

-- The members that matter. kind: what the value must be (null counts as absent); from, to: fields of info for its place.
local FIELDS, OPTIONS = {}, {}
local function field(into, name, kind, most)
    into[name] = { name = name, kind = kind, most = most, from = name .. "_from", to = name .. "_to" }
end
field(FIELDS, "model", "string")
field(FIELDS, "stream", "boolean")
field(FIELDS, "stream_options", "options")
field(FIELDS, "max_tokens", "whole", M.MAX_TOKENS)
field(FIELDS, "max_completion_tokens", "whole", M.MAX_TOKENS)
field(FIELDS, "n", "whole", M.MAX_CHOICES)
field(FIELDS, "best_of", "whole", M.MAX_CHOICES)
field(FIELDS, "messages", "messages")
field(FIELDS, "prompt", "prompt")
field(FIELDS, "input", "prompt")
field(FIELDS, "tools", "context")
field(FIELDS, "functions", "context")
field(FIELDS, "documents", "context")
field(FIELDS, "suffix", "context")
field(FIELDS, "chat_template", "context")
field(FIELDS, "chat_template_kwargs", "context")
field(FIELDS, "user", "string")
field(FIELDS, "prompt_cache_key", "string")
-- Other engines' names for the same limits. An engine that knows them prefers them over max_tokens and n (llama.cpp does),
-- which would pass by the limits of the tenant.
field(FIELDS, "n_predict", "refused", "max_tokens")
field(FIELDS, "max_new_tokens", "refused", "max_tokens")
field(FIELDS, "n_cmpl", "refused", "n")
field(OPTIONS, "include_usage", "boolean")
field(OPTIONS, "continuous_usage_stats", "boolean")

-- No name above is longer than 22 bytes, and an escape makes one byte six.
local LONGEST = 22 * 6

-- A name as the most tolerant parser compares it: lower case, with the two letters outside of ASCII that fold into it
-- (the Kelvin sign and the long s; JSON readers in Go do so).
local function fold(name)
    name = lower(name)
    if find(name, "[\128-\255]") then
        name = gsub(gsub(name, "\226\132\170", "k"), "\197\191", "s")
    end
    return name
end

-- The field that a member's name means; nil for any other member; nil and a sentence for a name that is refused.
local function lookup(fields, text, first, last)
    if last - first >= LONGEST then
        return nil
    end
    local name = sub(text, first, last)
    local known = fields[name]
    if known or span(name, 1, WORD) == #name then
        return known
    end
    local plain = unescape(name)
    if not plain then
        return nil, "invalid JSON: an escape is wrong in the member name at byte " .. first
    end
    known = fields[fold(plain)]
    if known then
        return nil, known.name .. ": the name is written in another way at byte " .. first, known.name
    end
    return nil
end

local function kind_of(c)
    if c == QUOTE then
        return "a string"
    elseif c == OPEN_OBJECT then
        return "an object"
    elseif c == OPEN_ARRAY then
        return "an array"
    elseif c == 116 or c == 102 then
        return "a boolean"
    end
    return "a number"
end

-- The number of prompts in a value of "prompt": an array of strings or of arrays of tokens is that many requests in one,
-- each of which makes max_tokens tokens. The value was checked before.
local function count_prompts(text, from)
    local pos, c = space(text, from + 1)
    if c ~= QUOTE and c ~= OPEN_ARRAY then
        return 1
    end
    local count = 0
    while true do
        count = count + 1
        pos, c = space(text, skip(text, pos) + 1)
        if c ~= COMMA then
            return count
        end
        pos = space(text, pos + 1)
    end
end

local read_options

-- Read one value into info. Returns nil, or a sentence.
local function read(info, known, text, from, to)
    local name, kind, c = known.name, known.kind, byte(text, from)
    if info[known.from] then
        return name .. ": given twice, the second time at byte " .. from
    end
    info[known.from], info[known.to] = from, to
    if kind == "refused" then
        return name .. ": not supported here, use " .. known.most
    elseif c == 110 then
        return nil
    elseif kind == "string" then
        if c ~= QUOTE then
            return name .. ": expected a string, found " .. kind_of(c)
        elseif to - from - 1 > M.MAX_STRING then
            return name .. ": longer than " .. M.MAX_STRING .. " bytes"
        end
        local value = sub(text, from + 1, to - 1)
        if tonumber(C.strcspn(value, CONTROLS)) ~= #value then
            return name .. ": a control character in a string"
        end
        value = unescape(value)
        if not value then
            return name .. ": an escape is wrong in the string at byte " .. from
        end
        info[name] = value
    elseif kind == "boolean" then
        if c ~= 116 and c ~= 102 then
            return name .. ": expected true or false, found " .. kind_of(c)
        end
        info[name] = c == 116
    elseif kind == "whole" then
        if kind_of(c) ~= "a number" then
            return name .. ": expected a whole number from 1 to " .. known.most .. ", found " .. kind_of(c)
        end
        local digits = sub(text, from, to)
        local value = #digits <= 64 and is_number(digits) and tonumber(digits)
        if not value or value < 1 or value > known.most or value ~= floor(value) then
            return name .. ": expected a whole number from 1 to " .. known.most .. ", found " .. sub(digits, 1, 32)
        end
        info[name] = value
    elseif kind == "messages" or kind == "prompt" then
        if c ~= OPEN_ARRAY and (kind == "messages" or c ~= QUOTE) then
            return name .. ": expected an array" .. (kind == "messages" and "" or " or a string")
                .. ", found " .. kind_of(c)
        end
        info.prompt_at = info.prompt_at or from
        info.prompt_bytes = info.prompt_bytes + to - from + 1
        if name == "prompt" and c == OPEN_ARRAY then
            info.prompts = count_prompts(text, from)
        end
    elseif kind == "context" then
        info.context_bytes = info.context_bytes + to - from + 1
    else
        return read_options(info, text, from, c)
    end
    return nil
end

function read_options(info, text, from, c)
    if c ~= OPEN_OBJECT then
        return "stream_options: expected an object, found " .. kind_of(c)
    end
    info.has_stream_options, info.options_open = true, from
    local pos
    pos, c = space(text, from + 1)
    info.options_empty = c == CLOSE_OBJECT
    while c ~= CLOSE_OBJECT do
        -- The structure was checked when the object was crossed, so a member is always found.
        local close, first, last, at, what = member(text, pos)
        local known, refusal = lookup(OPTIONS, text, pos + 1, close - 1)
        if known then
            refusal = read(info, known, text, first, last)
        end
        if refusal then
            return "stream_options." .. refusal
        end
        c = what
        pos = space(text, at + 1)
    end
    return nil
end

local function invalid(what, where)
    return nil, "invalid JSON: " .. what .. " at byte " .. where
end

-- Scan a request body (a string).
-- Returns a table, or nil, a sentence, and the name of the member at fault (nil when it is the JSON).
--   model, user, prompt_cache_key              strings, or nil
--   stream                                     true or false
--   max_tokens, max_completion_tokens, n, best_of   whole numbers, or nil
--   include_usage, continuous_usage_stats      members of stream_options: true, false, or nil for absent
--   has_stream_options                         is stream_options there (and not null)?
--   prompt_at, prompt_bytes                    where the raw value of messages, prompt or input begins, and its length
--                                              (of all of them, when a body has more than one); nil and 0 without
--   context_bytes                              length of what else becomes part of the prompt: tools, documents, ...
--   prompts                                    how many prompts there are: > 1 only for an array in "prompt"
--   NAME_from, NAME_to                         first and last byte of the value of each member that matters
-- null counts as absent, as it does for the engines.
function M.scan(body)
    local pos, c = space(body, 1)
    if c ~= OPEN_OBJECT then
        return invalid("expected an object", pos)
    end
    local info = new_table(0, 32)
    info.open, info.empty, info.stream, info.has_stream_options = pos, false, false, false
    info.prompt_bytes, info.context_bytes, info.prompts = 0, 0, 1
    pos, c = space(body, pos + 1)
    if c == CLOSE_OBJECT then
        info.empty = true
    end
    while c ~= CLOSE_OBJECT do
        local close, from, to, at, what = member(body, pos)
        if not close then
            return invalid(from, to)
        end
        c = byte(body, from)
        if (c == 45 or (c >= 48 and c <= 57)) and not (to - from < 64 and is_number(sub(body, from, to))) then
            return invalid("a number is malformed", from)
        end
        local known, refusal, name = lookup(FIELDS, body, pos + 1, close - 1)
        if known then
            refusal, name = read(info, known, body, from, to), known.name
        end
        if refusal then
            return nil, refusal, name
        end
        c = what
        if c == COMMA then
            pos = space(body, at + 1)
        else
            pos = at
        end
    end
    pos, c = space(body, pos + 1)
    if c then
        return invalid("something follows the object", pos)
    end
    return info
end

-- Fields of info by what becomes of them in scan_view.
local PLACES, PROMPTS, CONTEXTS = { "open", "prompt_at", "options_open" }, {}, {}
for _, fields in ipairs({ FIELDS, OPTIONS }) do
    for _, known in pairs(fields) do
        PLACES[#PLACES + 1], PLACES[#PLACES + 2] = known.from, known.to
        if known.kind == "messages" or known.kind == "prompt" then
            PROMPTS[#PROMPTS + 1] = known
        elseif known.kind == "context" then
            CONTEXTS[#CONTEXTS + 1] = known
        end
    end
end

local function bytes_of(body, info, fields)
    local bytes = 0
    for i = 1, #fields do
        local from = info[fields[i].from]
        -- null counts as absent.
        if from and body.at[from - 1] ~= 110 then
            bytes = bytes + info[fields[i].to] - from + 1
        end
    end
    return bytes
end

-- Scan a body that is a view, without a copy of its long strings: what is scanned is its outline (gw.view), and the places are
-- then those in the body. Returns what scan returns.
function M.scan_view(body)
    local outline, cuts = view.outline(body)
    local info = M.scan(outline)
    if not info then
        -- In the words that name the right places.
        return M.scan(view.sub(body, 1, body.length))
    elseif #cuts == 0 then
        return info
    end
    for i = 1, #PLACES do
        local place = info[PLACES[i]]
        if place then
            info[PLACES[i]] = view.place(cuts, place)
        end
    end
    info.prompt_bytes, info.context_bytes = bytes_of(body, info, PROMPTS), bytes_of(body, info, CONTEXTS)
    return info
end

local function quoted(text)
    return '"' .. gsub(text, '[%c"\\]', function(one)
        return string.format("\\u%04x", byte(one))
    end) .. '"'
end

-- Note one change: bytes from..to (to = from - 1 for an insertion) become text. Kept in order of place.
local function change(list, from, to, text)
    local at = #list + 1
    while at > 1 and list[at - 3] > from do
        list[at], list[at + 1], list[at + 2] = list[at - 3], list[at - 2], list[at - 1]
        at = at - 3
    end
    list[at], list[at + 1], list[at + 2] = from, to, text
end

local function limit(list, info, name, most)
    local value = info[name]
    if value ~= most then
        change(list, info[name .. "_from"], info[name .. "_to"], string.format("%.0f", most))
    end
end

-- How to change a body that was scanned. info: the answer of scan for it. wish: a table with any of
--   model = name              put another model's name
--   max_tokens = N            put this limit: in the member that the client used; when it used both, each is lowered to N
--                             (never raised); "max_tokens" is added when there is neither
--   include_usage = true      ask for the usage of a stream (only sensible when info.stream)
--   continuous_usage = true   ask for the usage in every event
-- Returns the changes in order of place: first and last byte that go (last = first - 1 for an insertion), what comes in their
-- place, and so on. All other bytes stay; nothing to change is an empty table.
function M.changes(info, wish)
    local list, first = {}, ""
    if wish.model and wish.model ~= info.model then
        local text = quoted(wish.model)
        if info.model_from then
            change(list, info.model_from, info.model_to, text)
        else
            first = '"model":' .. text .. ","
        end
    end
    local most = wish.max_tokens
    if most then
        if info.max_tokens and info.max_completion_tokens then
            limit(list, info, "max_tokens", math.min(info.max_tokens, most))
            limit(list, info, "max_completion_tokens", math.min(info.max_completion_tokens, most))
        elseif info.max_completion_tokens or (not info.max_tokens and info.max_completion_tokens_from
            and not info.max_tokens_from) then
            limit(list, info, "max_completion_tokens", most)
        elseif info.max_tokens_from then
            limit(list, info, "max_tokens", most)
        else
            first = first .. string.format('"max_tokens":%.0f,', most)
        end
    end
    local usage = wish.include_usage and not info.include_usage
    local continuous = wish.continuous_usage and not info.continuous_usage_stats
    if usage or continuous then
        local inside = ""
        if usage and info.include_usage_from then
            change(list, info.include_usage_from, info.include_usage_to, "true")
        elseif usage then
            inside = '"include_usage":true,'
        end
        if continuous and info.continuous_usage_stats_from then
            change(list, info.continuous_usage_stats_from, info.continuous_usage_stats_to, "true")
        elseif continuous then
            inside = inside .. '"continuous_usage_stats":true,'
        end
        if not info.has_stream_options then
            inside = "{" .. sub(inside, 1, -2) .. "}"
            if info.stream_options_from then
                change(list, info.stream_options_from, info.stream_options_to, inside)
            else
                first = first .. '"stream_options":' .. inside .. ","
            end
        elseif inside ~= "" then
            local at = info.options_open + 1
            change(list, at, at - 1, info.options_empty and sub(inside, 1, -2) or inside)
        end
    end
    if first ~= "" then
        change(list, info.open + 1, info.open, info.empty and sub(first, 1, -2) or first)
    end
    return list
end

-- A body (a string) with the changes of M.changes; the same string when there are none.
function M.edit(body, info, wish)
    local list = M.changes(info, wish)
    if #list == 0 then
        return body
    end
    local out, count, pos = {}, 0, 1
    for at = 1, #list, 3 do
        out[count + 1] = sub(body, pos, list[at] - 1)
        out[count + 2] = list[at + 2]
        count = count + 2
        pos = list[at + 1] + 1
    end
    out[count + 1] = sub(body, pos)
    return concat(out)
end

return M
