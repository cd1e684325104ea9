-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local cjson = require("cjson")
local ffi = require("ffi")
local scan = require("gw.scan")
local view = require("gw.view")
local workers = require("workers")

-- A view of a text between bytes that would change what is read, if one of them were.
local function view_of(text)
    local memory = ffi.new("char[?]", #text + 64)
    ffi.fill(memory, #text + 64, ("9"):byte())
    ffi.copy(memory + 32, text, #text)
    return view.new(memory + 32, #text, memory)
end

-- What scan says of a body. It is the same for a string and for a view.
local function read(body)
    local info, why, name = scan.scan(body)
    local other, other_why, other_name = scan.scan_view(view_of(body))
    assert.same(info, other)
    assert.equal(why, other_why)
    assert.equal(name, other_name)
    return info, why, name
end

-- The sentence of a refusal; fails when the body is taken.
local function refused(body)
    local info, why, name = read(body)
    assert.is_nil(info, "taken: " .. body:sub(1, 200))
    assert.is_string(why)
    return why, name
end

local function taken(body)
    local info, why = read(body)
    assert.is_nil(why)
    return info
end

describe("scan", function()
    it("reads what the gateway needs", function()
        local messages = '[{"role":"user","content":"a \\"}]{[ b"}]'
        local body = ' {"model":"deepseek-r1","messages":' .. messages
            .. ',"stream":true,"stream_options":{"include_usage":false,"continuous_usage_stats":true},'
            .. '"max_tokens":128,"max_completion_tokens":64,"n":2,"best_of":3,"user":"u-1","prompt_cache_key":"k"} \n'
        local info = taken(body)
        assert.equal("deepseek-r1", info.model)
        assert.is_true(info.stream)
        assert.equal(128, info.max_tokens)
        assert.equal(64, info.max_completion_tokens)
        assert.equal(2, info.n)
        assert.equal(3, info.best_of)
        assert.is_true(info.has_stream_options)
        assert.is_false(info.include_usage)
        assert.is_true(info.continuous_usage_stats)
        assert.equal("u-1", info.user)
        assert.equal("k", info.prompt_cache_key)
        assert.equal(#messages, info.prompt_bytes)
        assert.equal(messages, body:sub(info.prompt_at, info.prompt_at + info.prompt_bytes - 1))
        assert.equal(0, info.context_bytes)
        assert.equal(1, info.prompts)
    end)

    it("has sensible values for what is absent or null", function()
        for _, body in ipairs({ "{}", " { } ", '{"model":null,"stream":null,"stream_options":null,"max_tokens":null,'
            .. '"n":null,"messages":null,"user":null}' }) do
            local info = taken(body)
            assert.is_nil(info.model)
            assert.is_false(info.stream)
            assert.is_false(info.has_stream_options)
            assert.is_nil(info.include_usage)
            assert.is_nil(info.max_tokens)
            assert.is_nil(info.n)
            assert.is_nil(info.prompt_at)
            assert.equal(0, info.prompt_bytes)
        end
    end)

    it("counts the bytes of everything that becomes prompt", function()
        local info = taken('{"tools":[1,2],"messages":[],"suffix":"ab","prompt":"abc","input":[ ]}')
        assert.equal(#"[]" + #'"abc"' + #"[ ]", info.prompt_bytes)
        assert.equal(#"[1,2]" + #'"ab"', info.context_bytes)
    end)

    it("counts the prompts of a completion that is many in one", function()
        assert.equal(1, taken('{"prompt":"one"}').prompts)
        assert.equal(1, taken('{"prompt":[]}').prompts)
        assert.equal(1, taken('{"prompt":[1, 2, 3]}').prompts)
        assert.equal(1, taken('{"prompt":["one"]}').prompts)
        assert.equal(3, taken('{"prompt":[ "a,[" , "b\\"," ,"c"]}').prompts)
        assert.equal(2, taken('{"prompt":[[1,2],[3]]}').prompts)
        assert.equal(1, taken('{"input":["a","b"]}').prompts)
    end)

    it("is not fooled by members inside of values or strings", function()
        local info = taken('{"a":{"model":"x","stream":true,"max_tokens":7},"b":"\\",\\"n\\":9,\\"","c":["{",'
            .. '{"model":["]","\\\\"]}],"model":"y"}')
        assert.equal("y", info.model)
        assert.is_false(info.stream)
        assert.is_nil(info.max_tokens)
        assert.is_nil(info.n)
    end)

    it("finds the end of strings behind runs of backslashes", function()
        for run = 0, 9 do
            local slashes = ("\\\\"):rep(run)
            assert.equal("m", taken('{"a":"' .. slashes .. '","model":"m"}').model)
            assert.equal("m", taken('{"a":"' .. slashes .. '\\",\\"model\\":\\"z","model":"m"}').model)
        end
        assert.matches("has no end", (refused('{"a":"\\\\\\"}')))
        assert.matches("has no end", (refused('{"a":"\\"')))
    end)

    it("decodes the strings that it hands on", function()
        assert.equal("deepseek-ai/DeepSeek-R1", taken('{"model":"deepseek-ai\\/DeepSeek\\u002dR1"}').model)
        assert.equal("\195\169\226\130\172\240\159\152\128", taken('{"user":"\\u00e9\\u20AC\\ud83d\\ude00"}').user)
        assert.equal("\239\191\189x", taken('{"user":"\\ud83dx"}').user)
        assert.equal("\239\191\189", taken('{"user":"\\ude00"}').user)
        assert.equal("\239\191\189A", taken('{"user":"\\ud83d\\u0041"}').user)
        assert.equal('\b\f\n\r\t"\\', taken('{"user":"\\b\\f\\n\\r\\t\\"\\\\"}').user)
        assert.matches("^user: an escape is wrong", (refused('{"user":"\\x"}')))
        assert.matches("^user: an escape is wrong", (refused('{"user":"\\u12g4"}')))
        assert.matches("^model: a control character", (refused('{"model":"a\nb"}')))
    end)

    it("refuses a member that matters when it is given twice", function()
        for _, name in ipairs({ "model", "stream", "max_tokens", "max_completion_tokens", "n", "messages",
            "stream_options", "prompt" }) do
            local why, at = refused('{"' .. name .. '":null,"x":1,"' .. name .. '":null}')
            assert.matches("^" .. name .. ": given twice", why)
            assert.equal(name, at)
        end
        assert.matches("^stream_options.include_usage: given twice",
            (refused('{"stream_options":{"include_usage":true,"include_usage":true}}')))
        taken('{"temperature":1,"temperature":2}')
    end)

    it("refuses other spellings of a member that matters", function()
        for _, name in ipairs({ "max\\u005ftokens", "\\u006d\\u006F\\u0064\\u0065\\u006c", "Model", "STREAM", "Max_Tokens",
            "max_to\226\132\170ens", "me\197\191\197\191ages", "me\\u017f\\u017fages" }) do
            assert.matches("written in another way at byte 3", (refused('{"' .. name .. '":1}')))
        end
        assert.matches("^stream_options.include_usage: the name is written in another way",
            (refused('{"stream_options":{"include\\u005fusage":true}}')))
        assert.matches("an escape is wrong in the member name", (refused('{"mod\\el":1}')))
        taken('{"x\\u005fy":1,"Temperature":2,"\195\169":3,"models":4,"' .. ("\\u006d"):rep(400) .. '":5}')
    end)

    it("refuses other engines' names for the limits", function()
        assert.matches("^n_predict: not supported here, use max_tokens$", (refused('{"n_predict":-1}')))
        assert.matches("^max_new_tokens: ", (refused('{"max_new_tokens":null}')))
        assert.matches("^n_cmpl: not supported here, use n$", (refused('{"n_cmpl":8}')))
    end)

    it("takes whole numbers however they are written, and no others", function()
        for text, value in pairs({ ["1"] = 1, ["1000000000"] = 1e9, ["1e2"] = 100, ["1E+2"] = 100, ["64.0"] = 64,
            ["2.5e1"] = 25, ["4000e-3"] = 4 }) do
            assert.equal(value, taken('{"max_tokens":' .. text .. "}").max_tokens)
        end
        for _, text in ipairs({ "0", "-1", "1.5", "1e-1", "1000000001", "1e999", "-0", "1e10" }) do
            assert.matches("^max_tokens: expected a whole number from 1 to 1000000000, found ",
                (refused('{"max_tokens":' .. text .. "}")))
        end
        for text, found in pairs({ ['"5"'] = "a string", ["true"] = "a boolean", ["[5]"] = "an array", ["{}"] = "an object" }) do
            assert.matches("found " .. found .. "$", (refused('{"max_tokens":' .. text .. "}")))
        end
        assert.matches("^n: expected a whole number from 1 to 1024", (refused('{"n":1025}')))
        assert.equal(1024, taken('{"best_of":1024}').best_of)
    end)

    it("checks types", function()
        assert.matches("^stream: expected true or false, found a string$", (refused('{"stream":"true"}')))
        assert.matches("^stream: expected true or false, found a number$", (refused('{"stream":1}')))
        assert.matches("^model: expected a string, found an array$", (refused('{"model":["a"]}')))
        assert.matches("^model: expected a string, found a number$", (refused('{"model":-1}')))
        assert.matches("^messages: expected an array, found a string$", (refused('{"messages":"hi"}')))
        assert.matches("^prompt: expected an array or a string, found an object$", (refused('{"prompt":{}}')))
        assert.matches("^stream_options: expected an object, found a boolean$", (refused('{"stream_options":true}')))
        assert.matches("^stream_options.include_usage: expected true", (refused('{"stream_options":{"include_usage":1}}')))
        assert.matches("^model: longer than 512 bytes$", (refused('{"model":"' .. ("m"):rep(513) .. '"}')))
        assert.equal(512, #taken('{"model":"' .. ("m"):rep(512) .. '"}').model)
    end)

    it("refuses what is not JSON and says where", function()
        for _, case in ipairs({
            { "", "expected an object at byte 1" },
            { "[]", "expected an object at byte 1" },
            { '"a"', "expected an object at byte 1" },
            { "\239\187\191{}", "expected an object at byte 1" },
            { "{\0\"\0", "expected a member name in quotes at byte 2" },
            { "{", "expected a member name in quotes at byte 2" },
            { "{} x", "something follows the object at byte 4" },
            { "{}{}", "something follows the object at byte 3" },
            { "{}\0", "something follows the object at byte 3" },
            { '{"a"}', "expected a colon at byte 5" },
            { '{"a":}', "expected a value at byte 6" },
            { '{"a":1', 'expected a comma or "}" at byte 7' },
            { '{"a":1,}', "expected a member name in quotes at byte 8" },
            { '{,"a":1}', "expected a member name in quotes at byte 2" },
            { "{'a':1}", "expected a member name in quotes at byte 2" },
            { "{a:1}", "expected a member name in quotes at byte 2" },
            { '{"a":1 "b":2}', 'expected a comma or "}" at byte 8' },
            { '{"a":tru}', "expected a value at byte 6" },
            { '{"a":truex}', 'expected a comma or "}" at byte 10' },
            { '{"a":NaN}', "expected a value at byte 6" },
            { '{"a":01}', "a number is malformed at byte 6" },
            { '{"a":1.}', "a number is malformed at byte 6" },
            { '{"a":-}', "a number is malformed at byte 6" },
            { '{"a":+1}', "expected a value at byte 6" },
            { '{"a":1e}', "a number is malformed at byte 6" },
            { '{"a":"b}', "a string has no end at byte 6" },
            { '{"a', "a string has no end at byte 2" },
            { '{"a":[1,]}', "expected a value at byte 9" },
            { '{"a":[1 2]}', 'expected a comma or "]" at byte 9' },
            { '{"a":[1}', 'expected a comma or "]" at byte 8' },
            { '{"a":{"b":1]}', 'expected a comma or "}" at byte 12' },
            { '{"a":{"b"}}', "expected a colon at byte 10" },
            { '{"a":{1:2}}', "expected a member name in quotes at byte 7" },
            { '{"a":[', "the text ends early at byte 7" },
            { '{"a":[[],{"b":[]', 'expected a comma or "}" at byte 17' },
            { '{"a":/* " */1}', "expected a value at byte 6" },
            { '{"a":[/* " */1]}', "expected a value at byte 7" },
        }) do
            assert.equal("invalid JSON: " .. case[2], (refused(case[1])))
        end
    end)

    it("bounds the depth", function()
        taken('{"a":' .. ("["):rep(128) .. ("]"):rep(128) .. "}")
        assert.matches("nested deeper than 128 levels", (refused('{"a":' .. ("["):rep(129) .. ("]"):rep(129) .. "}")))
        assert.matches("nested deeper than 128 levels", (refused('{"a":' .. ('{"b":'):rep(100000))))
    end)

    -- Random JSON, then the same with one byte changed: whatever a strict decoder takes must be taken with the same
    -- values, and what it reads differently must not be taken.
    it("agrees with a decoder on random bodies", function()
        local rand = workers.random(7)
        local function pick(list)
            return list[math.floor(rand() * #list) + 1]
        end
        local strings = { "", "a", "b c", 'q\\"q', "\\\\", "{", "]", '\\\\\\"', "\195\169", "\\n", "model", '\\",\\"n\\":5' }
        local function value(depth)
            local kind = math.floor(rand() * (depth > 3 and 4 or 6))
            if kind == 0 then
                -- Some are longer than what an outline shortens.
                return '"' .. pick(strings):rep(rand() < 0.1 and 3000 or 1) .. '"'
            elseif kind == 1 then
                return pick({ "0", "-1.5", "12e3", "7" })
            elseif kind == 2 then
                return pick({ "true", "false", "null" })
            elseif kind == 3 then
                return pick({ "[]", "{}", "[ ]", "{ }" })
            end
            local parts = {}
            for index = 1, math.floor(rand() * 4) + 1 do
                parts[index] = (kind == 5 and '"' .. pick({ "k", "model", "n" }) .. index .. '"' .. pick({ ":", " : " }) or "")
                    .. value(depth + 1)
            end
            local inner = table.concat(parts, pick({ ",", ", ", ",\n" }))
            return kind == 4 and "[" .. inner .. "]" or "{" .. inner .. "}"
        end
        local both, neither = 0, 0
        for _ = 1, 4000 do
            local members = { '"x":' .. value(0), '"messages":[' .. value(0) .. "]", '"tools":' .. value(0),
                '"model":"m' .. pick(strings) .. '"', '"max_tokens":'
                .. pick({ "5", "70", "9e1" }), '"y":' .. value(0), '"stream":' .. pick({ "true", "false" }) }
            for index = #members, 2, -1 do
                local other = math.floor(rand() * index) + 1
                members[index], members[other] = members[other], members[index]
            end
            local body = "{" .. table.concat(members, pick({ ",", " , " })) .. "}"
            local info, decoded = taken(body), cjson.decode(body)
            assert.equal(decoded.model, info.model)
            assert.equal(decoded.max_tokens, info.max_tokens)
            assert.equal(decoded.stream, info.stream)
            local at = math.floor(rand() * #body) + 1
            local broken = body:sub(1, at - 1) .. pick({ "", '"', "\\", "{", "}", "[", "]", ",", ":", "1", " " })
                .. body:sub(at + 1)
            local ok, other = pcall(cjson.decode, broken)
            info = read(broken)
            if ok and info then
                both = both + 1
                assert.equal(other.model, info.model, broken)
                assert.equal(other.max_tokens, info.max_tokens, broken)
                if info.stream_from then
                    assert.equal(other.stream, info.stream, broken)
                end
            elseif not info then
                neither = neither + 1
            end
        end
        assert.is_true(both > 200 and neither > 200)
    end)
end)

describe("scan of a view", function()
    it("copies no long string", function()
        local long = ('\\"\195\169{' .. "\\\\"):rep(20000)
        local body = '{"messages":[{"content":"' .. long .. '"}],"model":"m","prompt":"' .. long .. '","tools":["' .. long
            .. '"],"n":2}'
        local outline, cuts = view.outline(view_of(body))
        assert.is_true(#outline < 4000)
        assert.equal(6, #cuts)
        local info = taken(body)
        assert.equal(2 * #long + 16 + 2, info.prompt_bytes)
        assert.equal(#long + 4, info.context_bytes)
        assert.equal('"m"', body:sub(info.model_from, info.model_to))
        assert.equal("2", body:sub(info.n_from, info.n_to))
    end)

    it("names the right byte of what is wrong", function()
        local long = ("x"):rep(100000)
        assert.equal("invalid JSON: a number is malformed at byte 100013", (refused('{"a":"' .. long .. '","b":01}')))
        assert.equal("invalid JSON: a string has no end at byte 6", (refused('{"a":"' .. long)))
        assert.equal("model: longer than 512 bytes", (refused('{"model":"' .. long .. '"}')))
    end)

    it("tells long strings from short ones to the byte", function()
        for length = view.LONG - 2, view.LONG + 2 do
            local body = '{"prompt":"' .. ("y"):rep(length) .. '","n":3}'
            assert.equal(length + 2, taken(body).prompt_bytes)
        end
    end)
end)

describe("edit", function()
    local function edited(body, wish)
        local info = taken(body)
        local new = scan.edit(body, info, wish)
        for _, most in ipairs({ 1, 3, #body, 65536 }) do
            local parts, size = view.parts(view_of(body), scan.changes(info, wish), most)
            assert.equal(new, table.concat(parts))
            assert.equal(#new, size)
        end
        assert(cjson.decode(new))
        taken(new)
        return new
    end

    it("changes what stands around a long string", function()
        local long = ('z\\"'):rep(5000)
        local wish = { model = "b", max_tokens = 9, include_usage = true }
        assert.equal('{"max_tokens":9,"stream_options":{"include_usage":true},"prompt":"' .. long
            .. '","model":"b","stream":true}', edited('{"prompt":"' .. long .. '","model":"a","stream":true}', wish))
    end)

    it("returns the same body when nothing is to change", function()
        local body = '{"model":"m","max_tokens":5,"stream_options":{"include_usage":true}}'
        assert.equal(body, edited(body, {}))
        assert.equal(body, edited(body, { model = "m", max_tokens = 5, include_usage = true }))
    end)

    it("changes only the bytes of the member", function()
        assert.equal('{ "a" : 1 , "max_tokens" : 7 , "b" : [ ] }', edited('{ "a" : 1 , "max_tokens" : 5000 , "b" : [ ] }',
            { max_tokens = 7 }))
        assert.equal('{"model":"real\\u0022name" ,"x":1}', edited('{"model":"al\\/ias" ,"x":1}', { model = 'real"name' }))
    end)

    it("puts the limit into the member that the client used", function()
        assert.equal('{"max_completion_tokens":7}', edited('{"max_completion_tokens":70}', { max_tokens = 7 }))
        assert.equal('{"max_tokens":7}', edited('{"max_tokens":null}', { max_tokens = 7 }))
        assert.equal('{"max_completion_tokens":7}', edited('{"max_completion_tokens":null}', { max_tokens = 7 }))
        assert.equal('{"max_tokens":null,"max_completion_tokens":7}',
            edited('{"max_tokens":null,"max_completion_tokens":9}', { max_tokens = 7 }))
        assert.equal('{"max_tokens":7,"max_completion_tokens":null}',
            edited('{"max_tokens":9,"max_completion_tokens":null}', { max_tokens = 7 }))
        assert.equal('{"max_tokens":7,"n":1}', edited('{"n":1}', { max_tokens = 7 }))
        assert.equal('{"max_tokens":7}', edited("{}", { max_tokens = 7 }))
        assert.equal('{"max_tokens":1000000000}', edited("{}", { max_tokens = 1e9 }))
    end)

    it("lowers both limits and raises neither when both are given", function()
        assert.equal('{"max_tokens":10,"max_completion_tokens":100}',
            edited('{"max_tokens":10,"max_completion_tokens":1000}', { max_tokens = 100 }))
        assert.equal('{"max_completion_tokens":100,"max_tokens":100}',
            edited('{"max_completion_tokens":1000,"max_tokens":500}', { max_tokens = 100 }))
    end)

    it("asks for usage", function()
        local wish = { include_usage = true }
        assert.equal('{"stream_options":{"include_usage":true},"stream":true}', edited('{"stream":true}', wish))
        assert.equal('{"stream_options":{"include_usage":true}}', edited('{"stream_options":null}', wish))
        assert.equal('{"stream_options":{"include_usage":true}}', edited('{"stream_options":{}}', wish))
        assert.equal('{"stream_options":{"include_usage":true }}', edited('{"stream_options":{"include_usage":false }}', wish))
        assert.equal('{"stream_options":{"include_usage":true}}', edited('{"stream_options":{"include_usage":null}}', wish))
        assert.equal('{"stream_options":{"include_usage":true, "x":1}}', edited('{"stream_options":{ "x":1}}', wish))
        local both = { include_usage = true, continuous_usage = true }
        assert.equal('{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}', edited("{}", both))
        assert.equal('{"stream_options":{"continuous_usage_stats":true,"include_usage":true}}',
            edited('{"stream_options":{"include_usage":true}}', both))
        assert.equal('{"stream_options":{"include_usage":true,"continuous_usage_stats":true}}',
            edited('{"stream_options":{"continuous_usage_stats":false}}', both))
    end)

    it("does all of it at once, whatever the order of the members", function()
        local parts = { '"model":"alias"', '"max_tokens":900', '"max_completion_tokens":800', '"messages":["\\"model\\""]',
            '"stream_options":{"include_usage":false}' }
        local rand = workers.random(3)
        for _ = 1, 50 do
            for index = #parts, 2, -1 do
                local other = math.floor(rand() * index) + 1
                parts[index], parts[other] = parts[other], parts[index]
            end
            local body = "{" .. table.concat(parts, ", ") .. "}"
            local expected = body:gsub("alias", "real"):gsub("[89]00", "77"):gsub("false", "true")
            assert.equal(expected, edited(body, { model = "real", max_tokens = 77, include_usage = true }))
        end
        assert.same({ model = "real", max_tokens = 7, stream_options = { include_usage = true }, a = 1 },
            cjson.decode(edited('{"a":1}', { model = "real", max_tokens = 7, include_usage = true })))
    end)
end)
