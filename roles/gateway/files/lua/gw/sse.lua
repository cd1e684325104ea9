-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Follow a streamed answer (server-sent events) chunk by chunk: usage, events with content, errors, the end. On demand take
-- the usage out again, for a client that did not ask for it.
--
-- An event is looked at when it is complete, that is when the empty line behind it has come. Pieces of an event are kept in
-- a list and joined once, so that the cost is linear however TCP splits them. The usual chunk is one whole event, which
-- costs a few plain searches. A name in quotes and a colon cannot occur inside of a JSON string (its quotes would be
-- escaped), so a search for it is right about "this name is there"; whether it is a member of the event itself is
-- then decided by a walk over the members.

local ffi = require("ffi")
local scan = require("gw.scan")

local M = {}
M.__index = M

local byte, find, gsub, match, sub = string.byte, string.find, string.gsub, string.match, string.sub
local concat = table.concat
local cast, copy, fill = ffi.cast, ffi.copy, ffi.string
local space, skip, member, span = scan.space, scan.skip, scan.member, scan.span

local LF, CR, QUOTE, COLON, COMMA, CLOSE_OBJECT = 10, 13, 34, 58, 44, 125

-- Longer events are passed through unseen.
M.MAX_EVENT = 1048576
-- How much of an error event is kept for the log.
M.MAX_ERROR = 1024

-- new{strip_usage}: one object per answer. What it found, to be read at any time:
--   usage     {prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details = {cached_tokens}}: of the last event
--             that had one; nil before
--   final     was it the usage of the whole answer (an event without choices, or the last one before [DONE])?
--   chunks    number of events with content: text, reasoning, or tool calls
--   events    number of events that hold data
--   done      was there a [DONE]?
--   failed    text of the first error event (its first 1024 bytes), or nil
--   oversize  number of events that were longer than 1 MiB
function M.new(options)
    return setmetatable({
        strip = options and options.strip_usage or false,
        usage = nil, final = false, chunks = 0, events = 0, done = false, failed = nil, oversize = 0,
        flags = { first = false, error = false, done = false },
        parts = {}, count = 0, held = 0, -- pieces of the event that is not complete
        tail = "",                       -- the last two bytes of those pieces
        passing = false,                 -- inside of an event that is too long
    }, M)
end

-- As in gw.scan, what is usual comes before a loop and not in it.

local function later_end(text, at)
    while at do
        local c = byte(text, at + 1)
        if c == LF then
            return at + 1
        elseif c == CR and byte(text, at + 2) == LF then
            return at + 2
        end
        at = find(text, "\n", at + 1, true)
    end
    return nil
end

-- The end of the first event: position of the last byte of the empty line that ends it, or nil.
local function event_end(text, pos)
    local c = byte(text, pos)
    if c == LF then
        return pos
    elseif c == CR and byte(text, pos + 1) == LF then
        return pos + 1
    end
    local at = find(text, "\n", pos, true)
    if at and byte(text, at + 1) == LF then
        return at + 1
    end
    return later_end(text, at)
end

local function later_value(text, name, at, last)
    while at do
        if byte(text, at - 1) == QUOTE then
            local colon, c = space(text, last + 1)
            if c == COLON then
                return space(text, colon + 1)
            end
        end
        at, last = find(text, name, last + 1, true)
    end
    return nil
end

-- Where the value of the next member of this name begins, at any depth, and its first byte; nil when there is none.
-- name: the name with its last quote. The first one is compared by hand: a search for text that begins with a quote stops
-- at every quote, and JSON is full of them.
local function value_of(text, name, pos)
    local at, last = find(text, name, pos, true)
    if not at then
        return nil
    elseif byte(text, at - 1) == QUOTE and byte(text, last + 1) == COLON then
        return space(text, last + 2)
    end
    return later_value(text, name, at, last)
end

-- Members of a delta that carry what the model wrote. The value is a string that is not empty, or a list that is not.
local CONTENT = { 'content"', 'text"', 'reasoning_content"', 'reasoning"', 'refusal"', 'tool_calls"', 'arguments"' }
local CALLS = 6

local function has_any_content(text, pos)
    for index = 1, #CONTENT do
        local name = CONTENT[index]
        local at, c = value_of(text, name, pos)
        while at do
            if c == QUOTE and byte(text, at + 1) ~= QUOTE then
                return true
            elseif c == 91 and index == CALLS then
                local _, inside = space(text, at + 1)
                if inside ~= 93 then
                    return true
                end
            end
            at, c = value_of(text, name, at)
        end
    end
    return false
end

local function has_content(text, pos)
    local place, first = value_of(text, CONTENT[1], pos)
    if first == QUOTE and byte(text, place + 1) ~= QUOTE then
        return true
    end
    return has_any_content(text, pos)
end

-- A whole number >= 0 that is the value from..to, or nil.
local function whole(text, from, to)
    local size = to - from + 1
    if size > 15 or span(text, from, "0123456789") ~= size then
        return nil
    end
    return (tonumber(sub(text, from, to)))
end

-- The cached_tokens of the object that begins at pos, or nil. Its structure was checked.
local function cached_tokens(text, pos)
    local cached, c
    pos, c = space(text, pos + 1)
    while c ~= CLOSE_OBJECT do
        local close, from, to, at, what = member(text, pos)
        if sub(text, pos + 1, close - 1) == "cached_tokens" then
            cached = whole(text, from, to)
        end
        c = what
        pos = space(text, at + 1)
    end
    return cached
end

-- Read the usage object that begins at pos into a table (a new one when into is nil). Returns the table, or nil.
local function read_usage(text, pos, into)
    local prompt, completion, total, cached, hits
    local c
    pos, c = space(text, pos + 1)
    while c ~= CLOSE_OBJECT do
        local close, from, to, at, what = member(text, pos)
        if not close then
            return nil
        end
        local name = sub(text, pos + 1, close - 1)
        if name == "prompt_tokens" then
            prompt = whole(text, from, to)
        elseif name == "completion_tokens" then
            completion = whole(text, from, to)
        elseif name == "total_tokens" then
            total = whole(text, from, to)
        elseif name == "prompt_cache_hit_tokens" then
            hits = whole(text, from, to)
        elseif name == "prompt_tokens_details" and byte(text, from) == 123 then
            cached = cached_tokens(text, from) or cached
        end
        c = what
        pos = space(text, at + 1)
    end
    if not (prompt or completion or total) then
        return nil
    end
    into = into or { prompt_tokens_details = {} }
    into.prompt_tokens = prompt or 0
    into.completion_tokens = completion or (total and math.max(0, total - into.prompt_tokens)) or 0
    into.total_tokens = total or into.prompt_tokens + into.completion_tokens
    into.prompt_tokens_details.cached_tokens = cached or hits or 0
    return into
end

local DROP = true

-- Look at the JSON text[a..b] of one event that has the name "usage" or "error" somewhere.
-- Returns nil to keep it, DROP to drop the event, or first and last byte of what is cut out of it.
local function inspect(self, text, a, b)
    local pos, c = space(text, a)
    if c ~= 123 then
        return nil
    end
    pos, c = space(text, pos + 1)
    local from_cut, to_cut, before -- the usage member with one comma; the comma before the member at hand
    local usage_at, usage_kind, bare
    local wants_comma, failed = false, false
    while c ~= CLOSE_OBJECT do
        local close, from, to, at, what = member(text, pos)
        if not close then
            return nil
        end
        if wants_comma then
            -- The usage was the first member: its comma goes with it, and the white space up to this member.
            to_cut, wants_comma = pos - 1, false
        end
        local first, size = byte(text, from), close - pos - 1
        -- Names are told apart by length and letter: no string is made of them.
        if size == 5 and byte(text, pos + 1) == 117 and (first == 123 or first == 110)
            and sub(text, pos, close) == '"usage"' then
            usage_at, usage_kind = from, first
            from_cut, to_cut = before or pos, to
            wants_comma = not before and what == COMMA
        elseif size == 7 and first == 91 and sub(text, pos, close) == '"choices"' then
            local _, inside = space(text, from + 1)
            bare = inside == 93
        elseif size == 5 and first ~= 110 and sub(text, pos, close) == '"error"'
            or size == 6 and to - from == 6 and sub(text, from, to) == '"error"' and sub(text, pos, close) == '"object"' then
            failed = true
        end
        before, c = at, what
        pos = space(text, at + 1)
    end
    if failed then
        self.flags.error = true
        self.failed = self.failed or sub(text, a, math.min(b, a + M.MAX_ERROR - 1))
    end
    if not usage_at then
        return nil
    end
    if usage_kind == 123 then
        local usage = read_usage(text, usage_at, self.usage)
        if usage then
            self.usage, self.final = usage, bare == true
        end
    end
    if not self.strip then
        return nil
    elseif bare and usage_kind == 123 then
        return DROP
    end
    return from_cut, to_cut
end

-- Take one event's data text[a..b] into account; nothing but the end of the event may follow in text.
-- Returns what inspect returns.
local function account(self, text, a, b)
    if b < a then
        return nil
    end
    self.events = self.events + 1
    if byte(text, a) == 91 and match(sub(text, a, b), "^%[DONE%]%s*$") then
        self.done, self.flags.done = true, true
        -- Engines that give the usage with the last choice, not in an event of its own.
        self.final = self.final or self.usage ~= nil
        return nil
    end
    if has_content(text, a) then
        if self.chunks == 0 then
            self.flags.first = true
        end
        self.chunks = self.chunks + 1
    end
    if find(text, 'usage"', a, true) or find(text, 'rror"', a, true) then
        return inspect(self, text, a, b)
    end
    return nil
end

-- The event text[a..b] with several lines, or with other fields than data.
-- Returns nil to keep it, DROP, first and last byte of what is cut out, or a string that is sent instead.
local function many_lines(self, text, a, b)
    local datas, count, others, ending = {}, 0, {}, "\n"
    local from, to
    local pos = a
    while pos <= b do
        local stop = find(text, "\n", pos, true)
        if not stop or stop > b then
            stop = b + 1
        end
        local last = stop - 1
        if last >= pos and byte(text, last) == CR then
            last, ending = last - 1, "\r\n"
        end
        local line = sub(text, pos, last)
        if sub(line, 1, 5) == "data:" then
            count = count + 1
            from, to = pos + (byte(line, 6) == 32 and 6 or 5), last
            datas[count] = sub(text, from, to)
        elseif line ~= "" then
            others[#others + 1] = line
            -- Older llama.cpp names the field itself "error".
            if sub(line, 1, 6) == "error:" or match(line, "^event: ?error$") then
                self.flags.error = true
                self.failed = self.failed or sub(text, a, math.min(b, a + M.MAX_ERROR - 1))
            end
        end
        pos = stop + 1
    end
    if count == 0 then
        return nil
    end
    local data = concat(datas, "\n")
    local first, last = account(self, data, 1, #data)
    if not first or first == DROP then
        return first
    elseif count == 1 then
        return first + from - 1, last + from - 1
    end
    others[#others + 1] = "data: " .. gsub(sub(data, 1, first - 1) .. sub(data, last + 1), "\n", ending .. "data: ")
    return concat(others, ending) .. ending .. ending
end

-- The event text[a..b], with the empty line at its end; it is the last one in text. Returns what many_lines returns.
local function event(self, text, a, b)
    local stop = find(text, "\n", a, true)
    if not stop or stop > b then
        stop = b + 1 -- the last event of a stream that was cut
    end
    local last = stop - 1
    if byte(text, last) == CR then
        last = last - 1
    end
    -- "data:" and nothing behind that line but the empty one
    if byte(text, a) ~= 100 or byte(text, a + 4) ~= COLON or sub(text, a, a + 4) ~= "data:" or b - stop > 2
        or (b > stop and byte(text, stop + 1) ~= LF and byte(text, stop + 1) ~= CR) then
        if stop == a or last < a then
            return nil -- an empty line
        end
        return many_lines(self, text, a, b)
    end
    local first = a + 5
    if byte(text, first) == 32 then
        first = first + 1
    end
    return account(self, text, first, last)
end

-- Go on inside of an event that is too long. Returns what the client is sent of it, and the rest of the chunk or nil.
local function pass(self, chunk)
    local tail = self.tail
    local text = tail .. chunk
    local stop = find(text, "\n\n", 1, true)
    local other = find(text, "\n\r\n", 1, true)
    if other and (not stop or other + 1 < stop) then
        stop = other + 1
    end
    if not stop then
        self.tail = sub(text, -2)
        return chunk, nil
    end
    self.passing, self.tail = false, ""
    return sub(text, #tail + 1, stop + 1), sub(text, stop + 2)
end

-- Larger texts than this are joined as strings, so that a worker keeps no large buffer.
local SMALL = 65536
local scratch = ffi.new("char[?]", SMALL)

-- The text without its bytes from..to, up to last. Joined in a buffer: the parts of events are alike, and strings that are
-- alike are dear to make in LuaJIT, which keeps each text once and finds it by a hash of a few of its bytes.
local function without(text, from, to, last)
    local size = last - (to - from + 1)
    if size > SMALL then
        return sub(text, 1, from - 1) .. sub(text, to + 1, last)
    end
    local bytes = cast("const char *", text)
    copy(scratch, bytes, from - 1)
    copy(scratch + from - 1, bytes + to, last - to)
    return fill(scratch, size)
end

-- Take a chunk of the answer. chunk: string, may be ""; last: true with the last one (the end of the stream, also of one
-- that was cut).
-- Returns the bytes for the client (may be "") and a table of flags that is the same one each time: first, error, done are
-- true when this call saw the first content, an error event, [DONE].
-- Without strip_usage the bytes are the chunk itself. With it, bytes of an event that is not complete are held back.
function M:feed(chunk, last)
    local flags, strip = self.flags, self.strip
    flags.first, flags.error, flags.done = false, false, false
    chunk = chunk or ""
    if self.count == 0 and not self.passing and #chunk <= M.MAX_EVENT and event_end(chunk, 1) == #chunk then
        -- One whole event, as it nearly always is.
        local from, to = event(self, chunk, 1, #chunk)
        if not strip or not from then
            return chunk, flags
        elseif to then
            return without(chunk, from, to, #chunk), flags
        end
        return from ~= DROP and from or "", flags
    end
    local ahead
    local text = chunk
    if self.passing then
        ahead, text = pass(self, chunk)
        if not text then
            return chunk, flags
        end
    end
    local count = self.count
    if count > 0 then
        -- Is the empty line there that ends the event?
        local probe = self.tail .. text
        if not last and not find(probe, "\n\n", 1, true) and not find(probe, "\n\r\n", 1, true) then
            if text ~= "" then
                self.count = count + 1
                self.parts[self.count] = text
                self.held = self.held + #text
                self.tail = sub(probe, -2)
            end
            if self.held <= M.MAX_EVENT then
                return strip and "" or chunk, flags
            end
            text = concat(self.parts, "", 1, self.count)
            self.parts, self.count, self.held, self.passing = {}, 0, 0, true
            self.oversize = self.oversize + 1
            return strip and text or chunk, flags
        end
        self.parts[count + 1] = text
        text = concat(self.parts, "", 1, count + 1)
        for index = 1, count + 1 do
            self.parts[index] = nil
        end
        self.count, self.held = 0, 0
    end
    local size = #text
    local pos, sent, out, pieces = 1, 1, nil, 0
    local one_from, one_to -- the usual case: one cut in one event
    while pos <= size do
        local stop = event_end(text, pos)
        if not stop then
            if not last then
                break
            end
            stop = size
        end
        local from, to
        if stop - pos >= M.MAX_EVENT then
            self.oversize = self.oversize + 1
        elseif stop == size then
            from, to = event(self, text, pos, stop)
        else
            -- More follows: searches must end with this event.
            from, to = event(self, sub(text, pos, stop), 1, stop - pos + 1)
            if to then
                from, to = from + pos - 1, to + pos - 1
            end
        end
        if from then
            local new = ""
            if not to then
                if from ~= DROP then
                    new = from
                end
                from, to = pos, stop
            end
            if not out and not one_from and new == "" then
                one_from, one_to = from, to
            else
                if not out then
                    out = {}
                    if one_from then
                        out[1] = sub(text, 1, one_from - 1)
                        pieces, sent, one_from = 1, one_to + 1, nil
                    end
                end
                pieces = pieces + 2
                out[pieces - 1], out[pieces] = sub(text, sent, from - 1), new
                sent = to + 1
            end
        end
        pos = stop + 1
    end
    if pos <= size then
        local rest = pos == 1 and text or sub(text, pos)
        if #rest > M.MAX_EVENT then
            self.passing, self.tail = true, sub(rest, -2)
            self.oversize = self.oversize + 1
            pos = size + 1
        else
            self.parts[1], self.count, self.held = rest, 1, #rest
            self.tail = sub(rest, -2)
        end
    end
    if not strip then
        return chunk, flags
    end
    if one_from then
        text = without(text, one_from, one_to, pos - 1)
    elseif out then
        out[pieces + 1] = sub(text, sent, pos - 1)
        text = concat(out, "", 1, pieces + 1)
    elseif pos <= size then
        text = sub(text, 1, pos - 1)
    end
    if ahead then
        text = ahead .. text
    end
    return text, flags
end

-- Do the bytes that were sent so far end inside of an event? An event added by the gateway has to end that one first.
function M:inside()
    return self.passing or (not self.strip and self.count > 0)
end

-- The usage object that begins at a place, if only other members, one closing brace and white space come behind it; or nil.
local function usage_at_end(text, from)
    local to = skip(text, from)
    if not to then
        return nil
    end
    local pos, what = space(text, to + 1)
    while what == COMMA do
        pos = space(text, pos + 1)
        local close, _
        close, _, _, pos, what = member(text, pos)
        if not close then
            return nil
        end
    end
    if what ~= CLOSE_OBJECT then
        return nil
    end
    local _, more = space(text, pos + 1)
    if more then
        return nil
    end
    return read_usage(text, from)
end

-- The usage of an answer that is not a stream. text: the whole body or the end of it (the last 64 KB are plenty).
-- It is found from the end: the object that a name "usage" stands before and behind which only other members, one closing
-- brace and white space come. So it does not matter where the text begins, and neither a usage further inside nor text
-- about usage is taken for it. The answer must be complete: a cut right behind an inner usage looks like an end.
-- Returns a usage table as in new(), or nil.
function M.usage_of(text)
    local at, c = value_of(text, 'usage"', 1)
    if not at then
        return nil
    end
    local next_at, next_c = value_of(text, 'usage"', at)
    if not next_at then
        -- As it is nearly always.
        if c == 123 then
            return usage_at_end(text, at)
        end
        return nil
    end
    local places, count = {}, 0
    while at do
        if c == 123 then
            count = count + 1
            places[count] = at
        end
        at, c = next_at, next_c
        if at then
            next_at, next_c = value_of(text, 'usage"', at)
        end
    end
    -- Few names are tried, so that an answer full of them costs no more than others.
    for index = count, math.max(1, count - 7), -1 do
        local usage = usage_at_end(text, places[index])
        if usage then
            return usage
        end
    end
    return nil
end

return M
