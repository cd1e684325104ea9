-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
-- Metrics of all workers: counted in each worker's own tables, added to a shared dict once per second, shown as Prometheus text.
--
-- Counting takes no lock: a series is looked up in nested tables by its label values, and strings are only made the first
-- time a worker sees it. What a worker counted since its last flush is lost when it is killed; one that ends in order calls
-- flush from its exit hook.
--
-- The dict is never searched: a list of series is kept in it. Nothing in it is evicted either, as every key is written with
-- safe_set or safe_add, or increased without creating it; what does not fit stays in the worker and is tried again. So the
-- dict should hold metrics only. Keys ("\31" separates):
--   n                      length of the list of series     i:<place>   series "<metric>\31<labels>"
--   c:<metric>             number of its series             v:<series>[\31<part>]  value; parts of a histogram: <le>, sum
--   p:<place>              pid of the worker in that place  g:<place>:<metric>     a worker's own value

local utf8 = require("gw.text").clean

local huge = math.huge
local byte, find, format, gsub, match, sub = string.byte, string.find, string.format, string.gsub, string.match, string.sub
local concat, sort = table.concat, table.sort
local tostring = tostring

local M = {}
M.__index = M

-- Label sets of one metric, unless the caller says otherwise. More go to one series whose labels are all "other".
local MOST_SERIES = 1000
local MOST_LABEL = 128
-- A worker that did not flush for this long (seconds) is gone.
local WORKER_TTL = 15
local MOST_WORKERS = 256

local Counter, Histogram, Gauge, Worker = {}, {}, {}, {}
Counter.__index, Histogram.__index, Gauge.__index, Worker.__index = Counter, Histogram, Gauge, Worker

---------------------------------------------------------------------------------------------------------------------
-- Text

-- One character that is not UTF-8 would cost the whole scrape.
local function clean(value)
    value = utf8(tostring(value), "?")
    if #value > MOST_LABEL then
        local cut = MOST_LABEL
        -- Not in the middle of a character.
        while cut > 0 and find(sub(value, cut + 1, cut + 1), "[\128-\191]") do
            cut = cut - 1
        end
        value = sub(value, 1, cut)
    end
    return value
end

local ESCAPES = { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }

-- Control characters are legal, but the separator must not be in a value.
local function label(value)
    return (gsub(gsub(clean(value), "[%z\1-\9\11-\31\127]", "?"), '[\\"\n]', ESCAPES))
end

local function number(value)
    if value ~= value then
        return "NaN"
    elseif value == huge then
        return "+Inf"
    elseif value == -huge then
        return "-Inf"
    elseif value % 1 == 0 and value > -1e15 and value < 1e15 then
        return format("%.0f", value)
    end
    local short = format("%.15g", value)
    return tonumber(short) == value and short or format("%.17g", value)
end

-- `a="1",b="2"` of names and values.
local function pairs_text(names, values)
    local out = {}
    for i = 1, #names do
        out[i] = names[i] .. '="' .. label(values[i] == nil and "" or values[i]) .. '"'
    end
    return concat(out, ",")
end

local function braces(a, b)
    if a == "" and not b then
        return ""
    elseif a == "" or not b then
        return "{" .. (b or a) .. "}"
    end
    return "{" .. a .. "," .. b .. "}"
end

---------------------------------------------------------------------------------------------------------------------
-- Registration

local function register(self, class, name, help, labels, fields)
    labels = labels or {}
    name = self.prefix .. name
    assert(not self.by_name[name], "metric registered twice")
    assert(#labels <= 4, "a metric has at most 4 labels")
    local metric = fields or {}
    metric.owner, metric.name, metric.labels, metric.arity = self, name, labels, #labels
    metric.help = gsub(gsub(help, "\\", "\\\\"), "\n", "\\n")
    metric.cache, metric.cached = {}, 0
    metric.most = metric.most or MOST_SERIES
    self.by_name[name] = metric
    self.metrics[#self.metrics + 1] = metric
    return setmetatable(metric, class)
end

-- new{dict, pid, prefix}: pid names this worker (ngx.worker.pid()); prefix is put before every name, "gw_" by default.
-- Create it in each worker, as the pid differs (init_worker); the registrations must be the same in all workers.
-- Registers itself: metrics_dropped_total{metric}, values counted under "other" since the metric has too many label sets;
-- metrics_errors_total{metric}, gauges whose callback failed; workers, the workers that flush;
-- worker_start_time_seconds{worker}, where worker is a small number that is used again.
function M.new(options)
    local self = setmetatable({
        dict = options.dict,
        pid = options.pid,
        prefix = options.prefix or "gw_",
        metrics = {},
        by_name = {},
        dirty = {},
        names = {},
    }, M)
    -- The only label is the name of a metric, so these are bounded by themselves.
    self.dropped =
        self:counter("metrics_dropped_total", "Values counted as other: too many label sets.", { "metric" }, huge)
    self.errors = self:counter("metrics_errors_total", "Gauges that failed when asked.", { "metric" }, huge)
    self:gauge("workers", "Workers that flush their metrics.", nil, function(emit)
        emit(#self:workers())
    end)
    self.start = self:worker("worker_start_time_seconds", "When the worker began to count, in Unix time.")
    return self
end

-- counter(name, help, labels, most): labels is a list of at most 4 names (nil for none); most bounds its label sets
-- (1000 by default). Returns an object with inc. Registration is for programmers' constants: mistakes are errors.
function M:counter(name, help, labels, most)
    return register(self, Counter, name, help, labels, { type = "counter", most = most })
end

-- histogram(name, help, labels, buckets, most): buckets are ascending upper bounds, without +Inf. Returns an object with
-- observe.
function M:histogram(name, help, labels, buckets, most)
    local parts = {}
    for i = 1, #buckets do
        assert(i == 1 or buckets[i] > buckets[i - 1], "buckets must ascend")
        parts[i] = number(buckets[i])
    end
    parts[#parts + 1] = "+Inf"
    return register(
        self,
        Histogram,
        name,
        help,
        labels,
        { type = "histogram", buckets = buckets, parts = parts, most = most }
    )
end

-- gauge(name, help, labels, callback): asked when metrics are shown: callback(emit), emit(value, label values...).
function M:gauge(name, help, labels, callback)
    return register(self, Gauge, name, help, labels, { type = "gauge", callback = callback })
end

-- worker(name, help): a value that each worker has for itself, such as its memory. Returns an object with set(value); it
-- is shown with the label worker until the worker has been gone for 15 seconds.
function M:worker(name, help)
    local metric = register(self, Worker, name, help, { "worker" }, { type = "gauge" })
    self.own = self.own or {}
    self.own[#self.own + 1] = metric
    return metric
end

---------------------------------------------------------------------------------------------------------------------
-- Counting

-- Is the series in the dict, and if not, may it be? Puts it into the list. counted: it is one of those that are bounded.
-- Returns true, or false when it is one too many; nil when the dict has no room for it now.
local function admit(metric, series, counted)
    local dict = metric.owner.dict
    local mark = "v:" .. series .. (metric.buckets and "\31sum" or "")
    if dict:get(mark) ~= nil then
        return true
    end
    local count_key = "c:" .. metric.name
    dict:safe_add("n", 0)
    if counted then
        dict:safe_add(count_key, 0)
        local count = dict:incr(count_key, 1)
        if not count then
            return nil
        end
        if count > metric.most then
            dict:incr(count_key, -1)
            return false
        end
    end
    -- First the list, then the value: a worker killed between the two leaves a line that is written again, not a value
    -- that nobody ever sees.
    local place = dict:incr("n", 1)
    local listed = place and dict:safe_set("i:" .. place, series)
    local added, reason
    if listed then
        added, reason = dict:safe_add(mark, 0)
    end
    if not added then
        if counted then
            dict:incr(count_key, -1)
        end
        if listed then
            dict:delete("i:" .. place)
        end
    end
    return added or reason == "exists" or nil
end

local function new_leaf(metric, series)
    local leaf = { metric = metric, series = series, dirty = false, listed = false }
    if metric.buckets then
        leaf.counts, leaf.sum = {}, 0
        for i = 1, #metric.parts do
            leaf.counts[i] = 0
        end
    else
        leaf.value = 0
    end
    return leaf
end

-- The series that takes what has no series of its own. It is beside the bound.
local function other(metric)
    local leaf = metric.other
    if not leaf then
        local values = {}
        for i = 1, metric.arity do
            values[i] = "other"
        end
        leaf = new_leaf(metric, metric.name .. "\31" .. pairs_text(metric.labels, values))
        metric.other = leaf
    end
    return leaf
end

-- Called for label values that this worker has not seen. false in the cache: known to be one too many.
local function miss(metric, known, a, b, c, d)
    if known == nil then
        local values = { a, b, c, d }
        local series = metric.name .. "\31" .. pairs_text(metric.labels, values)
        local allowed = metric.arity == 0 or admit(metric, series, true)
        -- No room in the dict: keep counting here, and try again with each flush.
        local leaf = allowed ~= false and new_leaf(metric, series)
        if leaf then
            leaf.listed = allowed == true and metric.arity > 0
        end
        -- The cache is bounded as well: twice the bound holds every series and as many refused ones.
        if metric.cached < 2 * metric.most then
            metric.cached = metric.cached + 1
            local node = metric.cache
            for i = 1, metric.arity - 1 do
                local inner = node[values[i]]
                if not inner then
                    inner = {}
                    node[values[i]] = inner
                end
                node = inner
            end
            node[metric.arity == 0 and 1 or values[metric.arity]] = leaf
        end
        if leaf then
            return leaf
        end
    end
    metric.owner.dropped:inc(1, metric.name)
    return other(metric)
end

-- The leaf of up to four label values.
local function find_leaf(metric, a, b, c, d)
    local arity, leaf = metric.arity, metric.cache
    if arity == 0 then
        leaf = leaf[1]
    else
        if a == nil then
            a = ""
        end
        leaf = leaf[a]
        if arity > 1 then
            if b == nil then
                b = ""
            end
            leaf = leaf and leaf[b]
            if arity > 2 then
                if c == nil then
                    c = ""
                end
                leaf = leaf and leaf[c]
                if arity > 3 then
                    if d == nil then
                        d = ""
                    end
                    leaf = leaf and leaf[d]
                end
            end
        end
    end
    return leaf or miss(metric, leaf, a, b, c, d)
end

local function touch(leaf)
    if not leaf.dirty then
        leaf.dirty = true
        local dirty = leaf.metric.owner.dirty
        dirty[#dirty + 1] = leaf
    end
end

-- inc(value, label values...): value >= 0; 0 makes the series appear. Anything else is ignored: counters never fall.
function Counter:inc(value, a, b, c, d)
    if not (value >= 0 and value < huge) then
        return
    end
    local leaf = find_leaf(self, a, b, c, d)
    leaf.value = leaf.value + value
    if not leaf.dirty then
        touch(leaf)
    end
end

local function bucket_of(buckets, value)
    local at = 2
    while at <= #buckets and value > buckets[at] do
        at = at + 1
    end
    return at
end

-- observe(value, label values...): any finite number.
function Histogram:observe(value, a, b, c, d)
    if not (value > -huge and value < huge) then
        return
    end
    local leaf = find_leaf(self, a, b, c, d)
    local buckets, counts = self.buckets, leaf.counts
    -- Most values of a gateway are in the first one.
    local at = value <= buckets[1] and 1 or bucket_of(buckets, value)
    counts[at] = counts[at] + 1
    leaf.sum = leaf.sum + value
    if not leaf.dirty then
        touch(leaf)
    end
end

-- set(value): this worker's value, shown after its next flush.
function Worker:set(value)
    self.value = value
end

---------------------------------------------------------------------------------------------------------------------
-- Flush

-- Add to a key that may not be there yet, without evicting another. Returns true when it was added.
local function bump(dict, key, delta)
    local value, err = dict:incr(key, delta)
    if not value and err == "not found" then
        value, err = dict:safe_add(key, delta)
        if not value and err == "exists" then
            value = dict:incr(key, delta)
        end
    end
    return value and true or false
end

-- Add a leaf to the dict. What could not be added stays in it. Returns true when nothing stays.
local function flush_leaf(dict, leaf)
    if not leaf.listed then
        local metric = leaf.metric
        local allowed = admit(metric, leaf.series, metric.arity > 0 and leaf ~= metric.other)
        if allowed == false then
            -- It was counted here while the dict was full, and others took the places meanwhile.
            local rest = other(metric)
            if leaf.counts then
                for i = 1, #leaf.counts do
                    rest.counts[i], leaf.counts[i] = rest.counts[i] + leaf.counts[i], 0
                end
                rest.sum, leaf.sum = rest.sum + leaf.sum, 0
            else
                rest.value, leaf.value = rest.value + leaf.value, 0
            end
            metric.owner.dropped:inc(1, metric.name)
            touch(rest)
            return true
        end
        leaf.listed = allowed == true
        if not leaf.listed then
            return false
        end
    end
    local key, done = "v:" .. leaf.series, true
    if not leaf.counts then
        if bump(dict, key, leaf.value) then
            leaf.value = 0
            return true
        end
        return false
    end
    local counts, parts = leaf.counts, leaf.metric.parts
    for i = 1, #parts do
        if counts[i] > 0 then
            if bump(dict, key .. "\31" .. parts[i], counts[i]) then
                counts[i] = 0
            else
                done = false
            end
        end
    end
    if bump(dict, key .. "\31sum", leaf.sum) then
        leaf.sum = 0
    else
        done = false
    end
    return done
end

-- The place of this worker among those alive. A place is free again when its worker did not flush for WORKER_TTL.
local function claim(self)
    local dict = self.dict
    if self.place and dict:get("p:" .. self.place) == self.pid then
        dict:expire("p:" .. self.place, WORKER_TTL)
        return self.place
    end
    self.place = nil
    for place = 1, MOST_WORKERS do
        if dict:safe_add("p:" .. place, self.pid, WORKER_TTL) then
            self.place = place
            return place
        end
    end
    return nil
end

-- flush(now): add what this worker counted to the dict. Call it once per second in every worker, and when it ends. Returns
-- the number of series for which the dict had no room; they are kept and tried again.
function M:flush(now)
    local dict, dirty = self.dict, self.dirty
    local last, kept = #dirty, 0
    local at = 1
    while at <= last do
        local leaf = dirty[at]
        leaf.dirty = false
        if not flush_leaf(dict, leaf) then
            leaf.dirty = true
            kept = kept + 1
            dirty[kept] = leaf
        end
        at = at + 1
        -- A leaf that had to go to "other" adds to the list; nothing else runs meanwhile.
        last = #dirty
    end
    for i = #dirty, kept + 1, -1 do
        dirty[i] = nil
    end
    if not self.start.value then
        self.start:set(now)
    end
    local place = claim(self)
    if place then
        for i = 1, #self.own do
            local metric = self.own[i]
            if metric.value then
                dict:safe_set("g:" .. place .. ":" .. metric.name, metric.value, WORKER_TTL)
            end
        end
    end
    return kept
end

---------------------------------------------------------------------------------------------------------------------
-- Showing

-- workers(): the workers that flush, as a list of {place, pid}.
function M:workers()
    local out = {}
    for place = 1, MOST_WORKERS do
        local pid = self.dict:get("p:" .. place)
        if pid then
            out[#out + 1] = { place = place, pid = pid }
        end
    end
    return out
end

-- Read what is new in the list of series. Lines that are not there yet (or never will be) are asked for again.
local function update_index(self)
    local dict, names = self.dict, self.names
    for place = 1, dict:get("n") or 0 do
        if not names[place] then
            local series = dict:get("i:" .. place)
            if series then
                names[place] = series
                local name, labels = match(series, "^([^\31]*)\31(.*)$")
                local metric = self.by_name[name]
                -- Two workers may have listed the same one.
                if metric and not (metric.listed and metric.listed[labels]) then
                    metric.listed = metric.listed or {}
                    metric.order = metric.order or {}
                    metric.listed[labels] = true
                    metric.order[#metric.order + 1] = labels
                    metric.unsorted = true
                end
            end
        end
    end
end

local function render_histogram(dict, metric, labels, out)
    local key = "v:" .. metric.name .. "\31" .. labels .. "\31"
    local sum = dict:get(key .. "sum")
    if not sum then
        return
    end
    local total, parts = 0, metric.parts
    for i = 1, #parts do
        total = total + (dict:get(key .. parts[i]) or 0)
        out[#out + 1] = metric.name .. "_bucket" .. braces(labels, 'le="' .. parts[i] .. '"') .. " " .. number(total)
    end
    -- The count is that of the buckets, so that the three always agree.
    out[#out + 1] = metric.name .. "_sum" .. braces(labels) .. " " .. number(sum)
    out[#out + 1] = metric.name .. "_count" .. braces(labels) .. " " .. number(total)
end

local function render_gauge(metric, out)
    local function emit(value, ...)
        if type(value) == "number" then
            out[#out + 1] = metric.name .. braces(pairs_text(metric.labels, { ... })) .. " " .. number(value)
        end
    end
    -- One bad gauge must not cost all the others.
    local ok = pcall(metric.callback, emit)
    return ok
end

-- render(now, extra): all metrics of all workers as Prometheus text 0.0.4, in the order of registration, series sorted by
-- their labels. This worker is flushed first; the others' counts are at most as old as their last flush. extra: text in the
-- same format that is put at the end, or nil.
function M:render(now, extra)
    self:flush(now)
    update_index(self)
    local dict, out = self.dict, {}
    local workers = self:workers()
    for i = 1, #self.metrics do
        local metric = self.metrics[i]
        out[#out + 1] = "# HELP " .. metric.name .. " " .. metric.help
        out[#out + 1] = "# TYPE " .. metric.name .. " " .. metric.type
        local begin = #out
        if metric.callback then
            if not render_gauge(metric, out) then
                self.errors:inc(1, metric.name)
            end
        elseif metric.type == "gauge" then
            for j = 1, #workers do
                local value = dict:get("g:" .. workers[j].place .. ":" .. metric.name)
                if value then
                    out[#out + 1] = metric.name .. '{worker="' .. workers[j].place .. '"} ' .. number(value)
                end
            end
        else
            local order = metric.order or {}
            if metric.unsorted then
                sort(order)
                metric.unsorted = false
            end
            for j = 1, #order do
                local labels = order[j]
                if metric.buckets then
                    render_histogram(dict, metric, labels, out)
                else
                    local value = dict:get("v:" .. metric.name .. "\31" .. labels)
                    if value then
                        out[#out + 1] = metric.name .. braces(labels) .. " " .. number(value)
                    end
                end
            end
        end
        if #out == begin then
            -- No series yet: a head alone says nothing.
            out[begin], out[begin - 1] = nil, nil
        end
    end
    local text = concat(out, "\n") .. "\n"
    return extra and extra ~= "" and text .. extra .. (byte(extra, -1) == 10 and "" or "\n") or text
end

return M
