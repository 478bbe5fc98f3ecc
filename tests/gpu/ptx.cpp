#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <stdexcept>

using std::string;
using std::vector;

static string trim(const string &s) {
    size_t from = s.find_first_not_of(" \t\n"), to = s.find_last_not_of(" \t\n");
    return from == string::npos ? "" : s.substr(from, to - from + 1);
}

static vector<string> split(const string &s, char by) {
    vector<string> all;
    int depth = 0;
    string now;
    for (char c : s) {
        depth += c == '{' || c == '[' || c == '(';
        depth -= c == '}' || c == ']' || c == ')';
        if (c == by && depth == 0) all.push_back(trim(now)), now.clear();
        else now += c;
    }
    if (!trim(now).empty()) all.push_back(trim(now));
    return all;
}

static size_t size_of(const string &type) {
    if (type == "pred") return 1;
    return std::stoul(type.substr(type.find_first_of("0123456789"))) / 8;
}

// `.param .align 8 .b8 name[16]` and the like: what it declares, how many bytes of it, aligned to what.
struct Declared { string name, type; size_t size = 0, align = 1; bool open = false; };

static Declared declared(const string &statement) {
    Declared d;
    vector<string> words = split(statement, ' ');
    for (size_t i = 0; i < words.size(); i++) {
        string w = trim(words[i]);
        if (w == ".align") d.align = std::stoul(words[++i]);
        else if (w[0] == '.' && w.find_first_of("0123456789") != string::npos && w.find('[') == string::npos) d.type = w.substr(1);
        else if (w[0] != '.') { d.name = w; break; }
    }
    size_t count = 1, at = d.name.find('[');
    if (at != string::npos) {
        string n = d.name.substr(at + 1, d.name.find(']') - at - 1);
        d.open = n.empty();
        count = n.empty() ? 0 : std::stoul(n);
        d.name = d.name.substr(0, at);
    }
    d.size = count * size_of(d.type);
    d.align = std::max(d.align, size_of(d.type));
    return d;
}

static string flat(string s) {
    std::replace(s.begin(), s.end(), '\t', ' ');
    std::replace(s.begin(), s.end(), '\n', ' ');
    return trim(s);
}

static string mangle(const string &name) {
    string out = "v_";
    for (char c : name) out += isalnum((unsigned char)c) ? string(1, c) : c == '%' ? "" : "_";
    return out;
}

Module::Module(const string &ptx) {
    // Without comments.
    for (size_t i = 0; i < ptx.size(); i++) {
        if (ptx.compare(i, 2, "//") == 0) while (i < ptx.size() && ptx[i] != '\n') i++;
        text += ptx[i];
    }
    std::replace(text.begin(), text.end(), '\t', ' ');
    for (size_t i = 0; i < text.size();) {
        size_t end = text.find_first_of(";{", i);
        if (end == string::npos) break;
        string head = flat(text.substr(i, end - i));
        size_t dot = head.find('.');
        head = dot == string::npos ? head : head.substr(dot);
        bool code = head.find(".entry") != string::npos || head.find(".func") != string::npos;
        if (code && text[end] == '{') {
            if (head.find(".entry") != string::npos) {
                string name = trim(head.substr(head.find(".entry") + 6));
                entries[trim(name.substr(0, name.find('(')))] = i;
            }
            int depth = 0;
            do {
                depth += text[end] == '{', depth -= text[end] == '}';
                end++;
            } while (depth > 0);
            i = end;
            continue;
        }
        if (text[end] == '{') end = text.find(';', end); // values of a constant
        string all = flat(text.substr(i, end - i));
        i = end + 1;
        if (head.find(".shared") != string::npos) {
            size_t at = all.find(".shared");
            Declared d = declared(all.substr(at));
            shared_size = (shared_size + d.align - 1) / d.align * d.align;
            if (!d.open) shared[d.name] = {shared_size, d.size}, shared_size += d.size;
            else shared[d.name] = {SIZE_MAX, 0};
        } else if (head.compare(0, 7, ".global") == 0 || head.compare(0, 6, ".const") == 0) {
            size_t values = all.find('=');
            Declared d = declared(trim(all.substr(0, values)));
            if (values == string::npos || all.find('{') == string::npos) continue;
            globals += "alignas(16) static const " + d.type + " " + mangle(d.name) + "[] = " + all.substr(values + 1) + ";\n";
        }
    }
}

namespace {

struct Translation {
    string out;
    std::map<string, size_t> parameters; // offsets
    std::map<string, size_t> shared;
    std::set<string> locals;    // parameters of calls

    [[noreturn]] void unknown(const string &what) { throw std::runtime_error("there is no translation of `" + what + "`"); }

    string operand(const string &o) {
        static const std::map<string, string> special = {
            {"%tid.x", "t->tid[0]"}, {"%tid.y", "t->tid[1]"}, {"%tid.z", "t->tid[2]"},
            {"%ntid.x", "t->ntid[0]"}, {"%ntid.y", "t->ntid[1]"}, {"%ntid.z", "t->ntid[2]"},
            {"%ctaid.x", "t->ctaid[0]"}, {"%ctaid.y", "t->ctaid[1]"}, {"%ctaid.z", "t->ctaid[2]"},
            {"%nctaid.x", "t->nctaid[0]"}, {"%nctaid.y", "t->nctaid[1]"}, {"%nctaid.z", "t->nctaid[2]"},
            {"%laneid", "t->lane"}, {"%warpid", "t->warp"}, {"WARP_SZ", "32u"},
        };
        auto found = special.find(o);
        if (found != special.end()) return found->second;
        if (o == "_") return "nowhere";
        if (o[0] == '!') return "!" + operand(o.substr(1));
        if (o.compare(0, 2, "0f") == 0 || o.compare(0, 2, "0F") == 0) return "bits<f32>(0x" + o.substr(2) + "u)";
        if (o.compare(0, 2, "0d") == 0 || o.compare(0, 2, "0D") == 0) return "bits<f64>((u64)0x" + o.substr(2) + "ull)";
        if (isdigit((unsigned char)o[0]) || o[0] == '-') return o[0] == '-' ? "(s64)(" + o + "ll)" : "(u64)" + o + "ull";
        if (shared.count(o)) return "(u64)" + (shared[o] == SIZE_MAX ? string("t->dynamic") : std::to_string(shared[o]) + "ull");
        return mangle(o);
    }

    string read(const string &type, const string &o) { return "as<" + type + ">(" + operand(o) + ")"; }
    void put(const string &o, const string &value) { out += "put(" + operand(o) + ", " + value + ");"; }

    // [base + offset]
    string address(const string &o, string &base) {
        string inner = trim(o.substr(1, o.size() - 2));
        size_t plus = inner.find('+');
        base = trim(inner.substr(0, plus));
        string offset = plus == string::npos ? "0" : trim(inner.substr(plus + 1));
        return offset;
    }

    void memory(const vector<string> &parts, const vector<string> &operands, bool load) {
        string space = "generic", type = parts.back();
        size_t count = 1;
        for (const string &p : parts) {
            if (p == "global" || p == "shared" || p == "local" || p == "param") space = p;
            if (p == "v2") count = 2;
            if (p == "v4") count = 4;
        }
        string base, offset = address(operands[load ? 1 : 0], base);
        string values = operands[load ? 0 : 1];
        vector<string> each = count > 1 ? split(values.substr(1, values.size() - 2), ',') : vector<string>{values};
        if (count > 1) out += "{";
        for (size_t i = 0; i < count; i++) {
            string more = " + " + offset + " + " + std::to_string(i * size_of(type));
            if (space == "param" && (parameters.count(base) || locals.count(base))) {
                string place = parameters.count(base) ? "parameters + " + std::to_string(parameters[base]) : mangle(base);
                if (load) put(each[i], "ld_param<" + type + ">((const char *)" + place + more + ")");
                else out += "{" + type + " x = " + read(type, each[i]) + "; __builtin_memcpy(" + place + more + ", &x, sizeof x);}";
                continue;
            }
            // The address is taken before a register of it is written over.
            if (i == 0) out += "u64 at = as<u64>(" + operand(base) + ");";
            string where = "at" + more;
            if (i == 0 && count > 1 && space == "global")
                out += "if (at + " + offset + " & " + std::to_string(count * size_of(type) - 1) + ") t->machine->stop(t, \"an address is not aligned\");";
            if (load) put(each[i], "ld_" + space + "<" + type + ">(t, " + where + ")");
            else out += "st_" + space + "<" + type + ">(t, " + where + ", " + read(type, each[i]) + ");";
        }
        if (count > 1) out += "}";
    }

    static string comparison(const string &cmp, const string &a, const string &b) {
        static const std::map<string, string> plain = {{"eq", "=="}, {"ne", "!="}, {"lt", "<"}, {"le", "<="}, {"gt", ">"}, {"ge", ">="},
                                                       {"lo", "<"}, {"ls", "<="}, {"hi", ">"}, {"hs", ">="}};
        auto found = plain.find(cmp);
        string nan = "(" + a + " != " + a + " || " + b + " != " + b + ")";
        if (found != plain.end()) {
            string holds = "(" + a + found->second + b + ")";
            return cmp == "ne" ? "(" + holds + " && !" + nan + ")" : holds; // ordered
        }
        if (cmp == "nan") return nan;
        if (cmp == "num") return "!" + nan;
        return "(" + nan + " || " + comparison(cmp.substr(0, 2), a, b) + ")";
    }

    void convert(const vector<string> &parts, const vector<string> &o) {
        vector<string> types;
        string way = "NEAREST";
        bool saturate = false;
        for (size_t i = 1; i < parts.size(); i++) {
            const string &p = parts[i];
            if (p == "rzi" || p == "rz") way = "ZERO";
            else if (p == "rmi") way = "DOWNWARDS";
            else if (p == "rpi") way = "UPWARDS";
            else if (p == "rni") way = "EVEN";
            else if (p == "sat") saturate = true;
            else if (p == "rn" || p == "ftz") continue;
            else types.push_back(p);
        }
        if (types.size() != 2 || types[0].find("x2") != string::npos || types[1].find("x2") != string::npos) {
            if (types.size() == 2 && (types[0] == "f16x2" || types[0] == "bf16x2") && types[1] == "f32") {
                string half = types[0].substr(0, types[0].size() - 2);
                put(o[0], "(u32)" + half + "(" + read("f32", o[1]) + ").at << 16 | " + half + "(" + read("f32", o[2]) + ").at");
                return;
            }
            unknown("cvt");
        }
        put(o[0], "convert<" + types[0] + ", " + types[1] + ">(" + read(types[1], o[1]) + ", " + way + ", " + (saturate ? "true" : "false") + ")");
    }

    void instruction(const string &whole) {
        string s = whole;
        string guard;
        if (s[0] == '@') {
            size_t space = s.find(' ');
            guard = operand(s.substr(1, space - 1));
            s = trim(s.substr(space));
        }
        size_t space = s.find(' ');
        string op = s.substr(0, space);
        vector<string> o = space == string::npos ? vector<string>{} : split(trim(s.substr(space)), ',');
        vector<string> parts = split(op, '.');
        const string &kind = parts[0], &type = parts.back();
        auto has = [&](const char *p) { return std::find(parts.begin(), parts.end(), p) != parts.end(); };
        out += "  ";
        if (!guard.empty()) out += "if (" + guard + ") ";
        out += "{ ";
        auto two = [&](const string &f) { put(o[0], f + "<" + type + ">(" + read(type, o[1]) + ", " + read(type, o[2]) + ")"); };
        auto one = [&](const string &f) { put(o[0], f + "<" + type + ">(" + read(type, o[1]) + ")"); };
        auto call = [&](const string &f) { put(o[0], "(" + type + ")" + f + "(" + read(type, o[1]) + ")"); };
        auto infix = [&](const string &f) { put(o[0], "(" + type + ")(" + read(type, o[1]) + f + read(type, o[2]) + ")"); };
        bool packed = type.size() > 2 && type.compare(type.size() - 2, 2, "x2") == 0;
        if (kind == "bra") out += "goto " + mangle(o[0]) + ";";
        else if (kind == "ret" || kind == "exit") out += "return;";
        else if (kind == "trap") out += "t->machine->stop(t, \"a trap\");";
        else if (kind == "call") {
            out += "t->machine->stop(t, \"a call of " + (o.size() > 1 && o[0][0] == '(' ? o[1] : o[0]) + "\");";
        } else if (kind == "bar" || kind == "barrier") {
            if (o.empty() || o[0] != "0" || o.size() > 1) unknown(whole);
            out += "t->machine->wait(t, AT_BARRIER);";
        } else if (kind == "membar" || kind == "fence" || kind == "prefetch") {
        } else if (kind == "ld") memory(parts, o, true);
        else if (kind == "ldu") memory(parts, o, true);
        else if (kind == "st") memory(parts, o, false);
        else if (kind == "mov") {
            if (o[0][0] == '{') {
                vector<string> each = split(o[0].substr(1, o[0].size() - 2), ',');
                size_t size = 8 * size_of(type) / each.size();
                string part = "u" + std::to_string(size);
                out += "auto all = " + read("u" + std::to_string(8 * size_of(type)), o[1]) + ";";
                for (size_t i = 0; i < each.size(); i++) put(each[i], "(" + part + ")(all >> " + std::to_string(i * size) + ")");
            } else if (o[1][0] == '{') {
                vector<string> each = split(o[1].substr(1, o[1].size() - 2), ',');
                size_t size = 8 * size_of(type) / each.size();
                string part = "u" + std::to_string(size), all = "u" + std::to_string(8 * size_of(type)), value;
                for (size_t i = 0; i < each.size(); i++)
                    value += (i ? " | " : "") + ("(" + all + ")" + read(part, each[i])) + " << " + std::to_string(i * size);
                put(o[0], "(" + all + ")(" + value + ")");
            } else put(o[0], read(type, o[1]));
        } else if (kind == "cvta") {
            if (!has("shared")) put(o[0], read("u64", o[1]));
            else if (has("to")) put(o[0], read("u64", o[1]) + " - (u64)t->shared");
            else put(o[0], read("u64", o[1]) + " + (u64)t->shared");
        } else if (kind == "cvt") convert(parts, o);
        else if (kind == "setp") {
            string first = o[0], second;
            size_t bar = first.find('|');
            if (bar != string::npos) second = first.substr(bar + 1), first = first.substr(0, bar);
            string holds = comparison(parts[1], read(type, o[1]), read(type, o[2]));
            string joined = has("and") ? "&&" : has("or") ? "||" : has("xor") ? "!=" : "";
            if (!joined.empty()) holds = "(" + holds + " " + joined + " " + read("pred", o[3]) + ")";
            out += "bool holds = " + holds + ";";
            put(first, "holds");
            if (!second.empty()) put(second, "!holds");
        } else if (kind == "set") {
            const string &to = parts[parts.size() - 2];
            string holds = comparison(parts[1], read(type, o[1]), read(type, o[2]));
            put(o[0], to[0] == 'u' || to[0] == 's' ? "(" + to + ")(" + holds + " ? -1 : 0)" : to + "(" + holds + " ? 1.0f : 0.0f)");
        } else if (kind == "selp") put(o[0], "(" + operand(o[3]) + " ? " + read(type, o[1]) + " : " + read(type, o[2]) + ")");
        else if (packed && (kind == "add" || kind == "mul" || kind == "sub")) {
            string half = type.substr(0, type.size() - 2), sign = kind == "add" ? "+" : kind == "mul" ? "*" : "-";
            out += "u32 a = " + read("u32", o[1]) + ", b = " + read("u32", o[2]) + ";";
            auto lane = [&](const string &shift) {
                return half + "((float)bits<" + half + ">((u16)(a" + shift + "))" + sign + "(float)bits<" + half + ">((u16)(b" + shift + "))).at";
            };
            put(o[0], "(u32)" + lane(" >> 16") + " << 16 | " + lane(""));
        } else if (has("cc") || kind == "addc" || kind == "subc" || kind == "madc") unknown(whole);
        else if (kind == "add" && has("rz")) put(o[0], "add_toward_0(" + read(type, o[1]) + ", " + read(type, o[2]) + ")");
        else if (kind == "add" || kind == "sub") two(kind);
        else if (kind == "mul" || kind == "mad") {
            string a = read(type, o[1]), b = read(type, o[2]);
            string product = has("wide") ? "mul_wide<" + type + ">(" + a + ", " + b + ")" : has("hi") ? "mul_hi<" + type + ">(" + a + ", " + b + ")" : "mul<" + type + ">(" + a + ", " + b + ")";
            if (kind == "mul") put(o[0], product);
            else out += "auto product = " + product + "; put(" + operand(o[0]) + ", (decltype(product))(product + as<decltype(product)>(" + operand(o[3]) + ")));";
        } else if (kind == "fma") {
            string f = has("rm") ? "fma_down" : has("rn") ? "fma_of<" + type + ">" : "";
            if (f.empty() || packed) unknown(whole);
            put(o[0], f + "(" + read(type, o[1]) + ", " + read(type, o[2]) + ", " + read(type, o[3]) + ")");
        } else if (kind == "div") two("div_of");
        else if (kind == "rem") two("rem_of");
        else if (kind == "neg") one("neg");
        else if (kind == "abs") one("abs_of");
        else if (kind == "min") two(has("NaN") ? "min_nan" : "min_of");
        else if (kind == "max") two(has("NaN") ? "max_nan" : "max_of");
        else if (kind == "and") infix(type == "pred" ? "&&" : "&");
        else if (kind == "or") infix(type == "pred" ? "||" : "|");
        else if (kind == "xor") infix(type == "pred" ? "!=" : "^");
        else if (kind == "not") put(o[0], "(" + type + ")(" + (type == "pred" ? "!" : "~") + read(type, o[1]) + ")");
        else if (kind == "shl" || kind == "shr") put(o[0], kind + "<" + type + ">(" + read(type, o[1]) + ", " + read("u32", o[2]) + ")");
        else if (kind == "bfi") put(o[0], "bfi<" + type + ">(" + read(type, o[1]) + ", " + read(type, o[2]) + ", " + read("u32", o[3]) + ", " + read("u32", o[4]) + ")");
        else if (kind == "prmt") put(o[0], "prmt(" + read("u32", o[1]) + ", " + read("u32", o[2]) + ", " + read("u32", o[3]) + ")");
        else if (kind == "clz") put(o[0], "(u32)clz<u" + type.substr(1) + ">(" + read("u" + type.substr(1), o[1]) + ")");
        else if (kind == "copysign") put(o[0], "(" + type + ")copysign(" + read(type, o[2]) + ", " + read(type, o[1]) + ")");
        else if (kind == "sqrt") call("root");
        else if (kind == "rsqrt") put(o[0], "(" + type + ")(1 / root(" + read(type, o[1]) + "))");
        else if (kind == "rcp") put(o[0], "(" + type + ")(1 / " + read(type, o[1]) + ")");
        else if (kind == "ex2") call("exp2f");
        else if (kind == "lg2") call("log2f");
        else if (kind == "sin") call("sinf");
        else if (kind == "cos") call("cosf");
        else if (kind == "tanh") call("tanhf");
        else if (kind == "shfl") {
            string way = has("bfly") ? "BFLY" : has("down") ? "DOWN" : has("up") ? "UP" : "IDX", first = o[0], second;
            size_t bar = first.find('|');
            if (bar != string::npos) second = first.substr(bar + 1), first = first.substr(0, bar);
            out += "bool ok; u32 got = shuffle(t, " + way + ", " + read("u32", o[1]) + ", " + read("u32", o[2]) + ", " + read("u32", o[3]) + ", " + read("u32", o[4]) + ", ok);";
            put(first, "got");
            if (!second.empty()) put(second, "ok");
        } else if (kind == "vote") {
            string all = "vote(t, " + read("pred", o[1]) + ", " + read("u32", o[2]) + ")";
            if (has("ballot")) put(o[0], all);
            else if (has("any")) put(o[0], all + " != 0");
            else if (has("all")) put(o[0], all + " == " + read("u32", o[2]));
            else unknown(whole);
        } else if (kind == "atom" && has("add")) {
            string base, offset = address(o[1], base);
            put(o[0], "atom_add<" + type + ">(t, as<u64>(" + operand(base) + ") + " + offset + ", " + read(type, o[2]) + ")");
        } else if (kind == "mma") {
            // mma.sync.aligned.m16n8k16.row.col.f32.(bf16|f16).(bf16|f16).f32 {d}, {a}, {b}, {c}
            if (!has("m16n8k16") || parts[6] != "f32" || type != "f32" || (parts[7] != "bf16" && parts[7] != "f16")) unknown(whole);
            size_t n = 0;
            for (int which : {1, 2, 3})
                for (const string &x : split(o[which].substr(1, o[which].size() - 2), ',')) out += "t->in[" + std::to_string(n++) + "] = " + read("u32", x) + ";";
            out += "t->way = " + string(parts[7] == "bf16" ? "1" : "0") + "; t->mask = ~0u; t->machine->wait(t, MULTIPLIES);";
            n = 0;
            for (const string &x : split(o[0].substr(1, o[0].size() - 2), ',')) put(x, "t->out[" + std::to_string(n++) + "]");
        } else if (kind == "ldmatrix") {
            if (!has("x4")) unknown(whole);
            string base, offset = address(o[1], base);
            out += "t->in[0] = as<u32>(" + operand(base) + ") + " + offset + "; t->way = " + (has("trans") ? "1" : "0") + "; t->mask = ~0u; t->machine->wait(t, LOADS_MATRICES);";
            size_t n = 0;
            for (const string &x : split(o[0].substr(1, o[0].size() - 2), ',')) put(x, "t->out[" + std::to_string(n++) + "]");
        } else unknown(whole);
        out += " }\n";
    }

    void body(const string &text, size_t &shared_size) {
        for (size_t i = 0; i < text.size();) {
            if (isspace((unsigned char)text[i])) { i++; continue; }
            if (text[i] == '{' || text[i] == '}') { out += string(1, text[i++]) + "\n"; continue; }
            size_t word = i;
            while (word < text.size() && (isalnum((unsigned char)text[word]) || text[word] == '$' || text[word] == '_')) word++;
            if (word < text.size() && word > i && text[word] == ':') {
                out += mangle(text.substr(i, word - i)) + ":;\n";
                i = word + 1;
                continue;
            }
            size_t end = text.find(';', i);
            string s = flat(text.substr(i, end - i));
            i = end + 1;
            if (s.empty()) continue;
            if (s.compare(0, 4, ".reg") == 0) {
                string rest = trim(s.substr(4)), type = rest.substr(1, rest.find(' ') - 1);
                string c = type == "pred" ? "bool" : type[0] == 'f' && size_of(type) > 2 ? type : "u" + std::to_string(8 * size_of(type));
                for (const string &name : split(trim(rest.substr(rest.find(' '))), ',')) {
                    size_t open = name.find('<');
                    if (open == string::npos) { out += c + " " + mangle(name) + ";\n"; continue; }
                    int n = std::stoi(name.substr(open + 1));
                    out += c;
                    for (int k = 0; k < n; k++) out += (k ? ", " : " ") + mangle(name.substr(0, open)) + std::to_string(k);
                    out += ";\n";
                }
            } else if (s.compare(0, 6, ".local") == 0) {
                Declared d = declared(s);
                out += "alignas(16) char " + mangle(d.name) + "[" + std::to_string(d.size) + "];\n";
            } else if (s.compare(0, 7, ".shared") == 0) {
                Declared d = declared(s);
                shared_size = (shared_size + d.align - 1) / d.align * d.align;
                shared[d.name] = shared_size, shared_size += d.size;
            } else if (s.compare(0, 6, ".param") == 0) {
                Declared d = declared(s);
                locals.insert(d.name);
                out += "alignas(16) char " + mangle(d.name) + "[" + std::to_string(d.size) + "];\n";
            } else if (s[0] != '.') instruction(s);
        }
    }
};

} // namespace

Entry Module::translate(const string &name) const {
    size_t at = entries.at(name), open = text.find('(', at), close = text.find(')', open), begin = text.find('{', close);
    size_t end = begin;
    int depth = 0;
    do {
        depth += text[end] == '{', depth -= text[end] == '}';
        end++;
    } while (depth > 0);
    Entry entry;
    Translation translation;
    for (const string &p : split(flat(text.substr(open + 1, close - open - 1)), ',')) {
        Declared d = declared(p);
        size_t &size = entry.parameters_size;
        size = (size + d.align - 1) / d.align * d.align;
        translation.parameters[d.name] = size;
        entry.parameters.push_back({size, d.size});
        size += d.size;
    }
    entry.shared_size = shared_size;
    for (const auto &[symbol, place] : shared) translation.shared[symbol] = place.first;
    string code = text.substr(begin, end - begin);
    translation.body(code, entry.shared_size);
    entry.shared_size = (entry.shared_size + 15) / 16 * 16;
    for (const char *together : {"->wait(", "shuffle(", "vote("}) entry.waits |= translation.out.find(together) != string::npos;
    string needed; // of the constants, only those that are named: there are hundreds
    for (size_t i = 0; i < globals.size();) {
        size_t stop = globals.find('\n', i);
        string line = globals.substr(i, stop - i);
        size_t from = line.find(" v_") + 1;
        if (translation.out.find(line.substr(from, line.find('[') - from)) != string::npos) needed += line + "\n";
        i = stop + 1;
    }
    size_t spot;
    while ((spot = translation.out.find("t->dynamic")) != string::npos)
        translation.out.replace(spot, 10, std::to_string(entry.shared_size) + "ull");
    entry.source = "#include \"thread.h\"\n" + needed + "static Nowhere nowhere;\nextern \"C\" void run(Thread *t, const char *parameters)\n" + translation.out + "\n";
    return entry;
}
