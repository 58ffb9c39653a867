#include <faiss_turboquant/io/fields.h>

namespace faiss_turboquant {

void throw_bad_value(
        const BoundedReader& f,
        const char* field,
        const std::string& value) {
    throw_altered(f.name, std::string(field) + " is " + value);
}

bool read_bool(BoundedReader& f, const char* field) {
    return read_within<uint8_t>(f, field, 0, 1) == 1;
}

void write_header(faiss::IOWriter& f, const faiss::Index& index) {
    write_value<uint32_t>(f, index.d);
    write_value<uint64_t>(f, index.ntotal);
    write_value<uint8_t>(f, index.is_trained);
    write_value<uint8_t>(f, index.metric_type);
}

void read_header(BoundedReader& f, faiss::Index& index) {
    index.d = read_within<uint32_t>(f, "d", 1, INT32_MAX);
    index.ntotal = read_within<uint64_t>(f, "ntotal", 0, INT64_MAX);
    index.is_trained = read_bool(f, "is_trained");
    index.metric_type = read_within<uint8_t>(f, "metric_type", 0, 1)
            ? faiss::METRIC_L2
            : faiss::METRIC_INNER_PRODUCT;
}

} // namespace faiss_turboquant
