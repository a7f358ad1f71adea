//! The functions that plugins call: all that the header declares, and what they answer.

use crate::{Place, words};

/// A plugin that does `code` in its config_complete, which returns -1 with the text in `said`.
fn say(code: &str) -> String {
    let place = Place::new();
    let source = place.join("said.c");
    let text = format!(
        "#define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #define NBDKIT_API_VERSION 2
        #include <nbdkit-plugin.h>
        #define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
        {code}
        static void *o(int r) {{ return NBDKIT_HANDLE_NOT_NEEDED; }}
        static int64_t s(void *h) {{ return 512; }}
        static int p(void *h, void *b, uint32_t c, uint64_t o, uint32_t f) {{ return 0; }}
        static struct nbdkit_plugin plugin = {{
            .name = \"said\", .open = o, .get_size = s, .pread = p, .config_complete = done,
        }};
        NBDKIT_REGISTER_PLUGIN(plugin)"
    );
    std::fs::write(&source, text).unwrap();
    let object = place.compile(&source, &[]);
    let error = nbd_nbdkit::Plugin::load(object.to_str().unwrap(), &[]).unwrap_err();
    words(&error).strip_prefix("`config_complete` fails: ").unwrap().to_owned()
}

#[test]
fn all_functions_of_the_header_are_there() {
    let header = ["nbdkit-plugin.h", "nbdkit-common.h"]
        .map(|name| std::fs::read_to_string(format!("/usr/include/{name}")).unwrap())
        .concat();
    let declared: Vec<_> = header
        .split("NBDKIT_EXTERN_DECL (")
        .skip(1)
        .filter_map(|text| text.split(',').nth(1))
        .map(str::trim)
        .collect();
    assert!(declared.len() > 30 && declared.contains(&"nbdkit_vdebug"), "{declared:?}");
    let addresses: String =
        declared.iter().map(|name| format!("sum += (unsigned long) {name};\n")).collect();
    // The loader resolves them all, or says which one there is not.
    let said = say(&format!(
        "static int done(void) {{ unsigned long sum = 0; {addresses}
            nbdkit_error(\"%s\", sum ? \"all\" : \"none\"); return -1; }}"
    ));
    assert_eq!(said, "all");
}

#[test]
fn text_is_formatted_as_by_printf() {
    let said = say(
        "static int done(void) { errno = ENOSPC;
            nbdkit_error(\"%m: %d%% %s %.2f %lld %c\", -5, \"text\", 1.5, 1LL << 40, 'x'); return -1; }",
    );
    assert_eq!(said, "No space left on device: -5% text 1.50 1099511627776 x");
    let said = say(
        "static void v(const char *f, ...) { va_list a; va_start(a, f); nbdkit_verror(f, a); va_end(a); }
        static int done(void) { errno = 7; v(\"%d %s\", 1, \"two\");
            if (errno != 7) nbdkit_error(\"errno is lost\"); return -1; }",
    );
    assert_eq!(said, "1 two");
}

#[test]
fn numbers_are_parsed() {
    let said = say(
        "static int done(void) { int i; uint8_t b; uint64_t u; int64_t s = nbdkit_parse_size(\"4k\");
            nbdkit_parse_int(\"i\", \"-7\", &i); nbdkit_parse_uint8_t(\"b\", \"0xff\", &b);
            nbdkit_parse_uint64_t(\"u\", \"18446744073709551615\", &u);
            nbdkit_error(\"%lld %d %u %llu %d\", (long long) s, i, b, (unsigned long long) u,
                nbdkit_parse_bool(\"on\"));
            if (nbdkit_parse_uint8_t(\"b\", \"256\", &b) != -1 || b != 255) nbdkit_error(\"stored\");
            return -1; }",
    );
    assert_eq!(
        said,
        "4096 -7 255 18446744073709551615 1; b: could not parse number: \"256\": it is out of range"
    );
}

#[test]
fn strings_live_on_and_paths_are_absolute() {
    let said = say(
        "static int done(void) { char b[] = \"abcdef\"; const char *s = nbdkit_strndup_intern(b, 3);
            const char *f = nbdkit_printf_intern(\"%s-%d\", b, 5); memset(b, 'x', 3);
            char *a = nbdkit_absolute_path(\"/x/y\"), *r = nbdkit_realpath(\"/proc/self/root/\");
            nbdkit_error(\"%s %s %s %s %d\", s, f, a, r, nbdkit_strdup_intern(s) == s);
            free(a); free(r); nbdkit_absolute_path(\"\"); return -1; }",
    );
    assert_eq!(
        said,
        "abc abcdef-5 /x/y / 1; cannot convert null or empty path to an absolute path"
    );
}

#[test]
fn passwords_come_from_values_and_files() {
    let place = Place::new();
    std::fs::write(place.join("password"), "secret\nmore\n").unwrap();
    let said = say(&format!(
        "static int done(void) {{ char *a, *b, *c = NULL; nbdkit_read_password(\"plain\", &a);
            nbdkit_read_password(\"+{}\", &b); nbdkit_error(\"%s %s\", a, b); free(a); free(b);
            if (nbdkit_read_password(\"-\", &c) != -1 || c) nbdkit_error(\"asked\");
            if (nbdkit_read_password(\"-999\", &c) != -1 || c) nbdkit_error(\"read\"); return -1; }}",
        place.join("password").display()
    ));
    assert!(said.starts_with("plain secret; password: it cannot be asked for"), "{said}");
    assert!(said.ends_with("password: Bad file descriptor (os error 9)"), "{said}");
}

#[test]
fn there_is_no_peer() {
    let said = say("static int done(void) { struct sockaddr_storage a; socklen_t l = sizeof a;
            int n = nbdkit_peer_name((struct sockaddr *) &a, &l);
            nbdkit_error(\"%d %d %d %d.\", n, (int) nbdkit_peer_pid(), nbdkit_is_tls(),
                nbdkit_export_name() == NULL); return -1; }");
    assert!(said.contains("a device has no peer"), "{said}");
    assert!(
        said.contains("this thread serves no export") && said.ends_with("-1 -1 0 1."),
        "{said}"
    );
}
