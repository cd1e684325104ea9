-- Copyright (c) 2026, gpufleet.deepseek contributors
-- SPDX-License-Identifier: Apache-2.0
local sha256 = require("gw.sha256")

describe("sha256", function()
    -- Examples of FIPS 180-4 and of NIST's CAVP (SHA256ShortMsg).
    local VECTORS = {
        [""] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ["abc"] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ["abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"] =
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
        ["\211"] = "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1",
        ["\017\175"] = "5ca7133fa735326081558ac312c620eeca9970d1e70a4b95533d956f072d1f98",
        [("a"):rep(1000000)] = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    }

    it("agrees with the published vectors", function()
        for text, digest in pairs(VECTORS) do
            assert.equal(digest, sha256.hex(text))
            assert.equal(digest, (sha256.raw(text):gsub(".", function(one)
                return ("%02x"):format(one:byte())
            end)))
        end
    end)

    it("takes all bytes of a string with zeros in it", function()
        assert.are_not.equal(sha256.hex("a"), sha256.hex("a\0"))
        assert.equal(32, #sha256.raw("\0"))
        assert.equal("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", sha256.hex("\0"))
    end)

    it("gives each text its own digest, one after the other", function()
        local seen = {}
        for index = 1, 5000 do
            local digest = sha256.hex("key-" .. index)
            assert.is_nil(seen[digest])
            seen[digest] = true
        end
        assert.equal(VECTORS["abc"], sha256.hex("abc"))
    end)
end)
